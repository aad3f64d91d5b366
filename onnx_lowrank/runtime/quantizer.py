"""ONNX Runtime's own quantizer: a model with weights and products in int8.

*Dynamic* quantization keeps weights in int8 and finds the range of activations anew at each run; it
pays in products of matrices (text encoders, recurrent nets). *Static* quantization has the ranges
of activations from calibration samples and writes them as pairs of QuantizeLinear and
DequantizeLinear; it pays in convolutions. Weights have a scale for every output channel.

    ready    = made_ready(model, "static", feeds)      # names, opset, ranges: once for a model
    smaller  = quantized(ready, leaving=["conv1"])     # as often as is asked

Reference:
    Jacob et al. 2018, Quantization and training of neural networks for efficient
    integer-arithmetic-only inference.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import onnx
from onnx import TensorProto, shape_inference, version_converter

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.runtime.runtime import Feed

__all__ = [
    "MODES",
    "Mode",
    "Quantize",
    "QuantizeOptions",
    "Ready",
    "check_quantizable",
    "made_ready",
    "quantized",
]

Mode = Literal["dynamic", "static"]
MODES: tuple[Mode, ...] = ("dynamic", "static")

#: operators with weights that are quantized, and the operand that is the weight. ConvInteger, the
#: dynamic form of Conv, takes longer than Conv on processors, so that convolutions stay as they are
_LAYERS: dict[Mode, dict[str, int]] = {
    "dynamic": {"MatMul": 1, "Gemm": 1, "LSTM": 1, "Attention": 1, "Gather": 0},
    "static": {"Conv": 1, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1, "Gather": 0},
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
#: what the quantizer adds to the name of a Gemm that it splits
_SPLIT = "_MatMul"


@dataclass(frozen=True)
class QuantizeOptions(OptionGroup):
    """The last step: int8."""

    title: ClassVar[str] = "int8"

    quantize: Mode | None = option(
        None,
        "Put the result into int8 by ONNX Runtime's quantizer: dynamic (weights; for products of "
        "matrices) or static (activations too, by the calibration samples; for convolutions). "
        "Layers that the judge cannot bear so stay as they are. Targets count before this step.",
        choices=MODES,
    )

    def __post_init__(self) -> None:
        if self.quantize not in (None, *MODES):
            raise OptionError(f"quantize is {self.quantize!r}; write {' or '.join(MODES)}")


@dataclass(frozen=True)
class Quantize:
    """What is asked of the quantizer.

    Attributes:
        mode: ``dynamic | static``.
        kept: part of the answers that must stay.
    """

    mode: Mode
    kept: float


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
    proto.CopyFrom(model.whole)
    _name_nodes(proto)
    layers = _layers(proto, mode)
    if not layers:
        other = "static" if mode == "dynamic" else "dynamic"
        raise OptionError(
            f"--quantize {mode}: the model has none of {', '.join(_LAYERS[mode])} with a constant "
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
    with _quiet("collect ranges"), tempfile.TemporaryDirectory() as folder:
        return replace(ready, ranges=_ranges(proto, feeds, Path(folder)))


def quantized(
    ready: Ready,
    *,
    leaving: Collection[str] = (),
    every_kind: bool = False,
    narrow: bool = False,
) -> Model:
    """The model in int8.

    Args:
        ready: what :func:`made_ready` returned.
        leaving: names of layers that stay as they are.
        every_kind: whether other operators (Add, Relu, pooling, ...) are quantized as well, where
            it is static.
        narrow: whether weights have seven bits, which keeps the sums of processors without
            instructions for int8 (VNNI) from saturating.

    Raises:
        OptionError: no layer is left to quantize.
        ModelError: the quantizer refuses the model.
    """
    taken = [name for name in ready.layers if name not in leaving]
    if not taken:
        raise OptionError("no layer is left to quantize")
    with _quiet("quantize"):
        if ready.mode == "dynamic":
            proto = _dynamic(ready, taken, narrow)
        else:
            proto = _static(ready, None if every_kind else taken, leaving, narrow)
    _as_before(proto, ready.model)
    return Model(proto)


def _dynamic(ready: Ready, taken: Sequence[str], narrow: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        onnx.save(ready.model, given)
        quantize_dynamic(
            given, made,
            op_types_to_quantize=list(_LAYERS["dynamic"]),
            nodes_to_quantize=[*taken, *(f"{name}{_SPLIT}" for name in taken)],
            per_channel=True, reduce_range=narrow, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(made)


def _static(
    ready: Ready, taken: Sequence[str] | None, leaving: Collection[str], narrow: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    kinds = sorted({*QLinearOpsRegistry, *QDQRegistry}) if taken is None else [*_LAYERS["static"]]
    # kernels for int8 multiply unsigned activations on x86, and signed ones on ARM
    arm = platform.machine().lower().startswith(("arm", "aarch"))
    quantizer = QDQQuantizer(
        shape_inference.infer_shapes(ready.model),
        True,  # a scale for each channel
        narrow,
        QuantType.QInt8,
        QuantType.QInt8 if arm else QuantType.QUInt8,
        deepcopy(ready.ranges),  # the quantizer merges ranges in place
        list(taken or ()),
        list(leaving),
        kinds,
        {},
    )
    quantizer.quantize_model()
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.onnx"
        quantizer.model.save_model_to_file(str(made))  # which also puts the nodes in order
        return onnx.load(made)


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


def _layers(proto: onnx.ModelProto, mode: Mode) -> tuple[str, ...]:
    """Names of the nodes whose weights are constant matrices of float32."""
    weights = {
        t.name
        for t in proto.graph.initializer
        if t.data_type == TensorProto.FLOAT and len(t.dims) > 1
    }
    operands = _LAYERS[mode]
    return tuple(
        n.name
        for n in proto.graph.node
        if n.op_type in operands
        and len(n.input) > operands[n.op_type]
        and n.input[operands[n.op_type]] in weights
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


def _as_before(proto: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Undo what the quantizer need not have changed: who made the model, and inferred shapes."""
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(proto, name, getattr(before, name))
    proto.ir_version = before.ir_version
    del proto.metadata_props[:]
    proto.metadata_props.extend(before.metadata_props)
    known = {v.name for v in before.graph.value_info}
    kept = [v for v in proto.graph.value_info if v.name in known]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    used = {n.domain for n in proto.graph.node} | {o.domain for o in before.opset_import}
    opsets = [o for o in proto.opset_import if o.domain in {*used, "", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)


@contextmanager
def _quiet(doing: str) -> Iterator[None]:
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
