"""A simpler copy of the model to start from, by onnxslim, where it is worth taking.

Exports compute constants and shapes with hundreds of small nodes, which take time that no
factorization finds. The copy is taken where it has fewer nodes, the same operator sets, and in ONNX
Runtime the same outputs on samples. Names, types and shapes of inputs and outputs, IR version and
metadata are those of the original.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import onnx

from onnx_lowrank.engine.analyse import cost_of_model
from onnx_lowrank.engine.job import Job
from onnx_lowrank.engine.tell import timed_pairs
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.report.simplified import Simplified
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.row_trial import HALF_TOLERANCE, TOLERANCE, relative_distance

__all__ = ["check_simplifier", "simplified"]

#: feeds on which outputs are compared, at the most
_COMPARED = 32
#: Ways to call it, the first that gives the same outputs is taken: its inference of shapes may fold
#: what depends on the input, as paddings that are computed.
_WAYS: tuple[tuple[Mapping[str, Any], str], ...] = (
    ({}, ""),
    ({"no_shape_infer": True}, "without inference of shapes: "),
)


def check_simplifier() -> None:
    """Refuse to go on where onnxslim is not installed.

    Raises:
        OptionError: as said.
    """
    _onnxslim()


def simplified(job: Job) -> Job:
    """The job with a simplified copy as its model, where that is worth taking, and what to say.

    Args:
        job: of the model as given.

    Raises:
        OptionError: onnxslim is not installed.
    """
    slim = _onnxslim()
    by = f"onnxslim {getattr(slim, '__version__', '')}".strip()
    with job.tools.stopwatch("simplify"):
        compared, reasons = _compared(job), []
        copy: Model | None = None
        for how, words in _WAYS:
            try:
                copy = _copied(job.source, partial(slim.slim, **how))
                _check_outputs(job, copy, compared)
                break
            except _NotTakenError as reason:
                copy = None
                reasons.append(f"{words}{reason}")
                if isinstance(reason, _NoSimplerError):
                    break
        if copy is None:
            why = "; ".join(reasons)
            said = f"{by} was tried before anything else, and its model not taken: {why}"
            return replace(job, said=(*job.said, said))
        nodes = len(job.source.proto.graph.node), len(copy.proto.graph.node)
        found = Simplified(
            by=f"{by} ({words.rstrip(': ')})" if words else by,
            nodes=nodes,
            before=cost_of_model(job, job.source),
            after=cost_of_model(job, copy),
            latency=timed_pairs(job, copy, sorted({1, job.tools.timing.batch})),
            samples=len(compared),
        )
    return replace(job, source=copy, simplified=found, said=(*job.said, found.said))


class _NotTakenError(Exception):
    """A simplified model is not taken; the message is a clause that says why."""


class _NoSimplerError(_NotTakenError):
    """There is nothing to simplify, in whatever way."""


def _onnxslim() -> Any:
    try:
        return import_module("onnxslim")
    except ImportError:
        raise OptionError(
            "--simplify needs onnxslim, which is not installed; pip install "
            '"onnx-lowrank[simplify]"'
        ) from None


def _copied(source: Model, slim: Callable[[onnx.ModelProto], Any]) -> Model:
    """A simplified copy, in the original's frame."""
    if source.external:
        raise _NoSimplerError("weights in files beside the model are left where they are")
    given = onnx.ModelProto()
    given.CopyFrom(source.proto)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = slim(given)
    # it may fail in any way on a model that it does not know
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _NotTakenError(f"it failed ({first})") from error
    if not isinstance(made, onnx.ModelProto):
        raise _NotTakenError("it returned no model")
    before, after = ({o.domain: o.version for o in m.opset_import} for m in (source.proto, made))
    if before != after:
        raise _NotTakenError("it changed the operator sets")
    if len(made.graph.node) >= len(source.proto.graph.node):
        raise _NoSimplerError("it has no fewer nodes")
    return replace(source, proto=_framed(source.proto, made))


def _framed(original: onnx.ModelProto, made: onnx.ModelProto) -> onnx.ModelProto:
    """The nodes and weights of one model in all else of another."""
    framed = onnx.ModelProto()
    framed.CopyFrom(original)
    graph = framed.graph
    for name in ("node", "initializer", "sparse_initializer"):
        graph.ClearField(name)
        getattr(graph, name).extend(getattr(made.graph, name))
    framed.ClearField("functions")
    framed.functions.extend(made.functions)
    computed = {name for node in graph.node for name in node.output}
    told = [v for v in original.graph.value_info if v.name in computed]
    graph.ClearField("value_info")
    graph.value_info.extend(told)
    return framed


def _compared(job: Job) -> Dataset:
    """Samples to compare on, spread evenly over those that calibrate, else that validate."""
    data = job.samples.calibration or job.samples.validation
    places = np.linspace(0, len(data) - 1, min(len(data), _COMPARED)).astype(int)
    return data.subset(places)


def _check_outputs(job: Job, copy: Model, data: Dataset) -> None:
    runtime = job.tools.runtime
    try:
        before, after = runtime.session(job.source), runtime.session(copy)
        if before.outputs != after.outputs:
            raise _NotTakenError("it has other outputs")
        with job.tools.progress.task("simplify", len(data)) as done:
            for i in range(len(data)):
                feed = data.feed(i)
                new = after.run(feed)
                for name, wanted in before.run(feed).items():
                    if not _same(wanted, new[name]):
                        raise _NotTakenError(f"its output {name!r} is another on sample {i}")
                done(1)
    except ModelError as error:
        raise _NotTakenError(str(error)) from error


def _same(wanted: Any, found: Any) -> bool:
    """Whether two outputs are the same but for rounding; what is no tensor cannot be told."""
    if not (isinstance(wanted, np.ndarray) and isinstance(found, np.ndarray)):
        return False
    if wanted.dtype != found.dtype:
        return False
    bound = HALF_TOLERANCE if wanted.dtype.itemsize == 2 else TOLERANCE
    return relative_distance(wanted, found) <= bound
