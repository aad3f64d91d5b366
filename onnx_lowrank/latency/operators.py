"""Where the time of a model goes, operator by operator, in ONNX Runtime's own profile.

A kernel is timed where it runs in the whole network, after the runtime has fused what it fuses. The
first run, which warms up, does not count.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed

__all__ = ["beside_products", "layer_times", "operator_times"]

#: runs that a profile is taken of
_RUNS = 6

#: what the name of a kernel that convolves or multiplies matrices contains, in any fusion
_PRODUCTS = ("Conv", "Gemm", "MatMul", "LSTM", "GRU", "RNN")

#: operators that become part of the convolution in front of them
_BEHIND = ("BatchNormalization", "Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")

#: end of the name of the kernel of a convolution on blocks of channels
_BLOCKED = "_nchwc"

#: end of the name of the event that times a node's kernel
_KERNEL = "_kernel_time"


def operator_times(runtime: Runtime, model: Model, feed: Feed) -> dict[str, float]:
    """Seconds of one run by operator, the longest first; empty for a model that runs in pieces.

    Args:
        runtime: runs the model.
        model: the model.
        feed: inputs of one inference.

    Raises:
        ModelError: the model does not run, or its profile cannot be written.
    """
    if model.large:
        return {}
    lasting: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in _profiled(runtime, model, feed):
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            lasting[event["name"], event["args"]["op_name"]].append(1e-6 * event["dur"])
    totals: dict[str, float] = defaultdict(float)
    for (_, operator), times in lasting.items():
        warm = times[len(times) // _RUNS :]  # a node in a loop runs several times
        totals[operator] += sum(warm) / (_RUNS - 1)
    return dict(sorted(totals.items(), key=lambda item: -item[1]))


def layer_times(
    runtime: Runtime, model: Model, feed: Feed, layers: Sequence[str]
) -> dict[str, float]:
    """Seconds of one run by layer; of those whose nodes the profile names.

    ONNX Runtime keeps the name of a node in that of the kernel that it becomes part of; blocked
    convolutions are named by the tensor that they make, with the activation behind them. The nodes
    of a chain begin with the name of their layer.

    Args:
        runtime: runs the model.
        model: the original, or one with chains in the place of layers.
        feed: inputs of one inference.
        layers: names of the layers.

    Raises:
        ModelError: the model does not run, or its profile cannot be written.
    """
    if model.large or not layers:
        return {}
    names = sorted(layers, key=len, reverse=True)  # of two that fit, the longer is meant
    each = "|".join(map(re.escape, names))
    known = re.compile(rf"(?<![0-9A-Za-z])({each})(?![0-9A-Za-z])")
    makers = _makers(model, known)
    lasting: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in _profiled(runtime, model, feed):
        if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
            continue
        name = event["name"].removesuffix(_KERNEL)
        tensor = name.removesuffix(_BLOCKED)
        found = known.search(name) if tensor == name else None
        layer = makers.get(tensor) if found is None else found[1]
        if layer is not None:
            lasting[layer, name].append(1e-6 * event["dur"])
    totals: dict[str, float] = defaultdict(float)
    for (layer, _), times in lasting.items():
        totals[layer] += float(np.median(times[1:] or times)) * len(times) / _RUNS
    return dict(totals)


def beside_products(times: Mapping[str, float]) -> dict[str, float]:
    """Parts of the whole time that operators other than convolutions and products of matrices take.

    Args:
        times: seconds by operator.
    """
    whole = sum(times.values())
    return {
        operator: seconds / whole
        for operator, seconds in times.items()
        if whole > 0 and not any(name in operator for name in _PRODUCTS)
    }


def _makers(model: Model, known: re.Pattern[str]) -> dict[str, str]:
    """The layer that makes each tensor, activations and normalisations behind it included."""
    makers: dict[str, str] = {}
    for node in model.proto.graph.node:
        found = known.search(node.name)
        layer = found[1] if found else None
        if layer is None and node.op_type in _BEHIND and node.input:
            layer = makers.get(node.input[0])
        if layer is not None:
            makers.update(dict.fromkeys(node.output, layer))
    return makers


def _profiled(runtime: Runtime, model: Model, feed: Feed) -> list[dict[str, Any]]:
    """The events of ONNX Runtime's profile of some runs, in their order."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            session = runtime.session(model, profile=Path(folder) / "profile")
            for _ in range(_RUNS):
                session.run(feed)
            events: list[dict[str, Any]] = json.loads(session.end_profile().read_text("utf8"))
            return events
    except (OSError, ValueError) as error:
        raise ModelError(
            f"ONNX Runtime's profile cannot be read ({error}); name a folder that can be written "
            "to in the environment variable TMPDIR"
        ) from error
