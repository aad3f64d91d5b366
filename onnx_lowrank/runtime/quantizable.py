"""Models made ready for ONNX Runtime's quantizer: weights where it looks, names, opset, ranges.

The quantizer finds weights among initializers alone, tells nodes apart by their names, and writes
operators that older opsets do not have. What it takes is put right here, once for a model, and the
ranges of activations are collected on calibration samples.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, shape_inference, version_converter

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.session import Feed

__all__ = [
    "LAYERS",
    "MODES",
    "Mode",
    "Ready",
    "check_quantizable",
    "layers_in",
    "made_ready",
    "quiet",
]

Mode = Literal["dynamic", "static"]
MODES: tuple[Mode, ...] = ("dynamic", "static")

#: operators with weights that are quantized, and the operands that are weights. ConvInteger, the
#: dynamic form of Conv, takes longer than Conv on processors, so that convolutions stay as they are
LAYERS: dict[Mode, dict[str, tuple[int, ...]]] = {
    "dynamic": {"MatMul": (1,), "Gemm": (1,), "LSTM": (1, 2), "Attention": (1,), "Gather": (0,)},
    "static": {"Conv": (1,), "ConvTranspose": (1,), "MatMul": (1,), "Gemm": (1,), "Gather": (0,)},
}
#: least opset whose operators do that
_OPSET: dict[Mode, int] = {"dynamic": 11, "static": 13}
#: operators of models that are quantized already
_QUANTIZED = frozenset({
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QuantizeLinear",
})  # fmt: skip
#: batches whose ranges are held before they are merged
_BATCHES = 8


@dataclass(frozen=True)
class Ready:
    """A model that can be quantized, many times over.

    Attributes:
        model: with a name for every node, at an opset that has the operators.
        mode: ``dynamic | static``.
        layers: names of the nodes with weights that can be quantized, in their order.
        ranges: the quantizer's ranges of all tensors; None where it is dynamic.
        remarks: sentences that say what had to be changed.
    """

    model: onnx.ModelProto
    mode: Mode
    layers: tuple[str, ...]
    ranges: Any = None
    remarks: tuple[str, ...] = ()


def check_quantizable(model: Model) -> None:
    """Refuse a model that the quantizer cannot take, before any work is done for it.

    Raises:
        OptionError: it is larger than 2 GB, or quantized already.
    """
    if model.large:
        raise OptionError(
            "--quantize: the model is larger than 2 GB, which one ONNX file cannot hold, and ONNX "
            "Runtime's quantizer works on one file; compress it without, and quantize the result "
            "with a tool for models in several files"
        )
    found = next((n.op_type for n in model.proto.graph.node if n.op_type in _QUANTIZED), None)
    if found is not None:
        raise OptionError(
            f"--quantize: the model is quantized already (it has a {found}); leave the option out"
        )


def made_ready(model: Model, mode: Mode, feeds: Iterable[Feed] = ()) -> Ready:
    """Name the nodes of a model, raise its opset where it must be, and collect ranges.

    Args:
        model: in floating point, smaller than 2 GB.
        mode: ``dynamic | static``.
        feeds: calibration samples, for ``static``; batches of any size.

    Raises:
        OptionError: nothing in the model can be quantized so.
        ModelError: the quantizer, or the converter of opsets, refuses the model.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(_with_weights(model, mode).whole)
    _name_nodes(proto)
    layers = layers_in(proto, mode)
    if not layers:
        other = "static" if mode == "dynamic" else "dynamic"
        raise OptionError(
            f"--quantize {mode}: the model has none of {', '.join(LAYERS[mode])} with a constant "
            f"weight of float32; try --quantize {other}, or leave it out"
        )
    remarks = []
    opset = next((o for o in proto.opset_import if o.domain in ("", "ai.onnx")), None)
    least = _OPSET[mode]
    if opset is not None and opset.version < least:
        remarks.append(f"the opset is {least}, not {opset.version}: int8 needs operators of it")
        proto = _at_opset(proto, least)
    ready = Ready(proto, mode, layers, remarks=tuple(remarks))
    if mode == "dynamic":
        return ready
    with quiet("collect ranges"), tempfile.TemporaryDirectory() as folder:
        return replace(ready, ranges=_ranges(proto, feeds, Path(folder)))


def _ranges(proto: onnx.ModelProto, feeds: Iterable[Feed], folder: Path) -> Any:
    from onnxruntime.quantization import CalibrationDataReader, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self, some: Sequence[Feed]) -> None:
            self._feeds = iter(some)

        def get_next(self) -> Any:
            feed = next(self._feeds, None)
            return None if feed is None else dict(feed)

    given = folder / "given.onnx"
    onnx.save(shape_inference.infer_shapes(proto), given)
    calibrator = create_calibrator(given, None, str(folder / "augmented.onnx"))
    batches = iter(feeds)
    while some := list(islice(batches, _BATCHES)):
        calibrator.collect_data(Reader(some))
    return calibrator.compute_data()


def _with_weights(model: Model, mode: Mode) -> Model:
    """The model with weights that follow from constants as initializers, where the quantizer looks.

    Exporters hand them on through Identity, Transpose, Slice or Concat.
    """
    graph, operands = Graph(model), LAYERS[mode]
    given = {t.name for t in model.proto.graph.initializer}
    for node in list(graph.nodes):
        computed = {}
        for place in operands.get(node.op, ()):
            name = node.inputs[place].name if place < len(node.inputs) else ""
            value = graph.constant(name) if name and name not in given else None
            if value is not None and value.dtype == np.float32 and value.ndim > 1:
                computed[place] = graph.renew_constant(name, value)
        if computed:
            graph.change(node, computed)
    return graph.to_model()


def layers_in(proto: onnx.ModelProto, mode: Mode) -> tuple[str, ...]:
    """Names of the nodes whose weights are constant matrices of float32."""
    weights = {
        t.name
        for t in proto.graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) > 1
    }
    operands = LAYERS[mode]
    return tuple(
        n.name
        for n in proto.graph.node
        if n.op_type in operands
        and len(n.input) > max(operands[n.op_type])
        and all(n.input[place] in weights for place in operands[n.op_type])
    )


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Give a name of its own to each node that has none."""
    seen: set[str] = set()
    taken = {n.name for n in proto.graph.node}
    for number, node in enumerate(proto.graph.node):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _at_opset(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(proto, version)
    except Exception as error:  # the converter is C++ and knows not all operators
        raise ModelError(
            f"--quantize: int8 needs opset {version}, and onnx cannot convert the model to it "
            f"({_first_line(error)}); export it at opset {version} or newer"
        ) from error


@contextmanager
def quiet(doing: str) -> Iterator[None]:
    """Keep the quantizer's advice to developers from users, and name what it refuses."""
    root, before = logging.getLogger(), logging.root.manager.disable
    handler = logging.NullHandler()  # else the quantizer gives the root a handler of its own
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    except (OptionError, ModelError):
        raise
    except Exception as error:  # a library that raises whatever it likes
        raise ModelError(
            f"--quantize: ONNX Runtime's quantizer could not {doing} ({_first_line(error)}); leave "
            "the option out"
        ) from error
    finally:
        logging.disable(before)
        root.removeHandler(handler)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
