"""Search for the layers of a graph, and for the nodes with weights that are not layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.convolutions import convolution
from onnx_lowrank.layers.layer import LOOKUP, RECURRENT
from onnx_lowrank.layers.lookups import looks_up, lookup
from onnx_lowrank.layers.operands import NotLinear, refuse_overridable
from onnx_lowrank.layers.placed import Ineligible, PlacedLayer
from onnx_lowrank.layers.products import gemm, matmul, recurrent

__all__ = ["find_layers", "refuse_optimised"]

#: functions that read a node of each operator as a layer
_READERS: dict[str, Callable[[Graph, Node, str], PlacedLayer]] = {
    "Conv": convolution,
    "ConvTranspose": convolution,
    "Gemm": gemm,
    "MatMul": matmul,
    LOOKUP: lookup,
    **dict.fromkeys(RECURRENT, recurrent),
}
#: Operators that have weights, but that no pass can replace.
_OTHER_OPS = {
    op: f"{op} is not factorized"
    for op in ("ConvInteger", "QLinearConv", "MatMulInteger", "QLinearMatMul", "QGemm",
               "DeformConv", "Einsum", "MatMulNBits", "MatMulBnb4",
               "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
               "GatherBlockQuantized")
}  # fmt: skip
#: Operators that ONNX Runtime's graph optimisations make of layers, in its own domains.
_OTHER_OPS |= dict.fromkeys(
    (
        "FusedConv",
        "FusedGemm",
        "FusedMatMul",
        "NhwcConv",
        "NhwcFusedConv",
        "Attention",
        "QAttention",
        "MultiHeadAttention",
        "GroupQueryAttention",
    ),
    "it was fused by ONNX Runtime; give the model as it was before, to have it compressed",
)
_NO_WEIGHT = "it has no weight"
_OPTIMISED = "it has the blocked layout that ONNX Runtime makes for one kind of processor"
_LAYOUT_DOMAIN = "com.microsoft.nchwc"


def find_layers(graph: Graph) -> tuple[list[PlacedLayer], list[Ineligible]]:
    """List the layers of the main graph in topological order, and the ineligible nodes."""
    layers: list[PlacedLayer] = []
    others: list[Ineligible] = []
    taken: set[str] = set()
    for node in graph.nodes:
        name = node.name
        if node.op == LOOKUP and not looks_up(graph, node):
            continue
        if not name or name in taken:
            name = node.outputs[0].name if node.outputs else node.op
        while name in taken:
            name += "_"
        output = next((t.name for t in node.outputs if t.name), "")
        if node.op in _READERS and node.domain in (None, "", "ai.onnx"):
            taken.add(name)
            try:
                layer = _READERS[node.op](graph, node, name)
                refuse_overridable(graph, layer.input, "input")
                layers.append(layer)
            except NotLinear as verdict:
                others.append(Ineligible(name, node.op, str(verdict), output))
        elif node.op in _OTHER_OPS or (node.op == "Conv" and node.domain == _LAYOUT_DOMAIN):
            taken.add(name)
            standard = node.op == "Attention" and node.domain in (None, "", "ai.onnx")
            reason = _NO_WEIGHT if standard else _OTHER_OPS.get(node.op, _OPTIMISED)
            others.append(Ineligible(name, node.op, reason, output))
    for proto, place in graph.subgraph_nodes():
        if proto.op_type == LOOKUP:  # there mostly shapes are reckoned with
            continue
        if proto.op_type in _READERS or proto.op_type in _OTHER_OPS:
            output = next((o for o in proto.output if o), "")
            name = proto.name or output or proto.op_type
            others.append(Ineligible(name, proto.op_type, f"inside {place}", output, main=False))
    return layers, others


def refuse_optimised(others: Iterable[Ineligible]) -> None:
    """Refuse a model that ONNX Runtime has optimised for its own kernels.

    The MACs of layers in its blocked layouts cannot be counted, so no budget would be right.

    Raises:
        ModelError: there is such a layer.
    """
    found = [o for o in others if o.reason == _OPTIMISED]
    if found:
        raise ModelError(
            f"{found[0].op} {found[0].name!r}: {_OPTIMISED}; "
            "give the model as it was before ONNX Runtime's layout optimisation"
        )
