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

import platform
import tempfile
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx
from onnx import shape_inference

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.runtime.quantizable import LAYERS, MODES, Mode, Ready, layers_in, quiet

__all__ = ["Quantize", "QuantizeOptions", "quantized", "untaken"]

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
    with quiet("quantize"):
        if ready.mode == "dynamic":
            proto = _dynamic(ready, taken, narrow)
        else:
            proto = _static(ready, None if every_kind else taken, leaving, narrow)
    _as_before(proto, ready.model)
    return Model(proto)


def untaken(ready: Ready, model: Model) -> tuple[str, ...]:
    """Names of the layers that read weights in floating point in a model of :func:`quantized`."""
    rest = set(layers_in(model.proto, ready.mode))
    return tuple(n for n in ready.layers if n in rest or f"{n}{_SPLIT}" in rest)


def _dynamic(ready: Ready, taken: Sequence[str], narrow: bool) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        onnx.save(ready.model, given)
        quantize_dynamic(
            given, made,
            op_types_to_quantize=list(LAYERS["dynamic"]),
            nodes_to_quantize=[*taken, *(f"{name}{_SPLIT}" for name in taken)],
            per_channel=True, reduce_range=narrow, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return onnx.load(made)


def _static(
    ready: Ready, taken: Sequence[str] | None, leaving: Collection[str], narrow: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    kinds = sorted({*QLinearOpsRegistry, *QDQRegistry}) if taken is None else [*LAYERS["static"]]
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
