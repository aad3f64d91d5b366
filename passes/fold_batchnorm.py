"""fold_batchnorm: fold a BatchNormalization into the linear layer in front of it.

Before:      Conv | ConvTranspose | Gemm -> BatchNormalization
After:       the layer alone
Conditions:  inference mode; all parameters constant; the layer's output is read by nothing else
             and is not a graph output; its weight is not shared with another node

Formula:     a = gamma / sqrt(var + eps);   W' = a W,   b' = a (b - mean) + beta

Reference:   Jacob et al. 2018, Quantization and training of neural networks, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.passkit.base import Edit, Rewrite

__all__ = ["FoldBatchnorm"]

Array = npt.NDArray[np.floating[Any]]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class FoldBatchnorm(Rewrite):
    """Fold a BatchNormalization into the linear layer in front of it."""

    name: ClassVar[str] = "fold_batchnorm"

    def run(self, graph: Graph, max_edits: int | None = None) -> Sequence[Edit]:
        """See the module."""
        edits: list[Edit] = []
        for norm in graph.nodes:
            if max_edits is not None and len(edits) >= max_edits:
                break
            if norm.op == "BatchNormalization":
                layer = _foldable(graph, norm)
                if layer is not None and _fold(graph, layer, norm):
                    edits.append(Edit(norm.name or norm.op, f"folded into {layer.name}"))
        return edits


def _foldable(graph: Graph, norm: Node) -> Node | None:
    # before opset 14 more than one output means training mode, before 9 statistics can be images
    if graph.attribute(norm, "training_mode", 0) or not graph.attribute(norm, "spatial", 1):
        return None
    if norm.domain not in (None, "", "ai.onnx") or any(not t.is_empty() for t in norm.outputs[1:]):
        return None
    tensor = norm.inputs[0].name
    layer = graph.producer(tensor)
    if layer is None or layer.op not in _LAYERS or layer.domain not in (None, "", "ai.onnx"):
        return None
    if len(graph.consumers(tensor)) != 1 or graph.is_output(tensor):
        return None
    weight = layer.inputs[1].name
    if graph.uses(weight) > 1:
        return None
    return layer


def _fold(graph: Graph, layer: Node, norm: Node) -> bool:
    names = [t.name for t in norm.inputs[1:5]]
    weight = graph.constant(layer.inputs[1].name)
    values = [graph.constant(n) for n in names]
    has_bias = len(layer.inputs) > 2 and not layer.inputs[2].is_empty()
    bias = graph.constant(layer.inputs[2].name) if has_bias else np.zeros(())
    if weight is None or bias is None or any(v is None for v in values):
        return False
    gamma, beta, mean, variance = (np.asarray(v, np.float64) for v in values)
    if {v.shape for v in (gamma, beta, mean, variance)} != {(_outputs(layer, weight),)}:
        return False
    scale = gamma / np.sqrt(variance + graph.attribute(norm, "epsilon", 1e-5))
    attrs = dict(layer.attrs)
    if layer.op == "Gemm":
        if bias.size not in (1, len(scale)) or (bias.ndim == 2 and bias.shape[0] != 1):
            return False
        alpha, beta_gemm = attrs.pop("alpha", 1.0), attrs.pop("beta", 1.0)
        along = scale[:, None] if attrs.get("transB", 0) else scale
        new_weight = weight.astype(np.float64) * alpha * along
        bias = bias.astype(np.float64).reshape(-1) * beta_gemm
    else:
        new_weight = _scaled(layer, weight.astype(np.float64), scale)
    new_bias = np.broadcast_to(scale * (bias.astype(np.float64) - mean) + beta, scale.shape)
    dtype = weight.dtype
    with np.errstate(over="ignore"):
        new_weight, new_bias = new_weight.astype(dtype), new_bias.astype(dtype)
    if not (np.isfinite(new_weight).all() and np.isfinite(new_bias).all()):
        return False
    source, stem = layer.inputs[0].name, layer.inputs[1].name
    output = norm.outputs[0].name

    def make() -> list[Node]:
        inputs = [
            source,
            graph.add_constant(f"{stem}_folded", new_weight, stem),
            graph.add_constant(f"{stem}_folded_bias", new_bias, stem),
        ]
        return [graph.make_node(layer.op, layer.name, inputs, output, attrs)]

    graph.replace([layer, norm], make)
    return True


def _outputs(layer: Node, weight: Array) -> int:
    if layer.op == "Conv":
        return len(weight)
    if layer.op == "Gemm":
        return int(weight.shape[0 if layer.attrs.get("transB", 0) else 1])
    return int(weight.shape[1]) * int(layer.attrs.get("group", 1))


def _scaled(layer: Node, weight: Array, scale: Array) -> Array:
    tail = (1,) * (weight.ndim - 2)
    if layer.op == "Conv":
        return weight * scale.reshape(-1, 1, *tail)
    # ConvTranspose holds (C, N / groups, *kernel): outputs are counted group by group
    groups = int(layer.attrs.get("group", 1))
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    return (grouped * scale.reshape(groups, 1, -1, *tail)).reshape(weight.shape)
