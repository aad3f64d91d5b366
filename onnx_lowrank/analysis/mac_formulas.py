"""How many multiply-accumulates an operator does, from the shapes of what it reads and makes.

Only the products of contractions count: sums over an axis that two operands share, as in Conv,
MatMul, Einsum, attention and the recurrent nodes. Elementwise operators, normalizations, pooling
and interpolation count as 0. Operators that contract, but whose work depends on the algorithm or
on data (Fourier transforms, mixtures of experts, sparse attention), have no formula; whoever adds
up must name them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
from onnx import NodeProto

from onnx_lowrank.analysis.einsum_macs import einsum_macs

__all__ = ["DEFAULT_DOMAINS", "MICROSOFT", "UnknownShapeError", "formula_of", "why_uncountable"]

Shape = tuple[int, ...]

#: how the default operator set is named
DEFAULT_DOMAINS = frozenset({"", "ai.onnx"})
#: the domain of ONNX Runtime's own operators
MICROSOFT = "com.microsoft"


class UnknownShapeError(Exception):
    """A shape that a formula needs is not known."""


class Call:
    """A node with the shapes of its operands.

    Args:
        node: the node.
        shapes: shapes of tensors by name.
    """

    def __init__(self, node: NodeProto, shapes: Mapping[str, Shape]) -> None:
        self._node, self._shapes = node, shapes

    def has(self, index: int) -> bool:
        """Whether input ``index`` is given."""
        return index < len(self._node.input) and bool(self._node.input[index])

    def x(self, index: int) -> Shape:
        """Shape of input ``index``.

        Raises:
            UnknownShapeError: it is not given, or not known.
        """
        return self._shape(self._node.input, index)

    def y(self, index: int = 0) -> Shape:
        """Shape of output ``index``; errors as of :meth:`x`."""
        return self._shape(self._node.output, index)

    @property
    def operands(self) -> list[Shape]:
        """Shapes of all inputs; errors as of :meth:`x`."""
        return [self.x(i) for i in range(len(self._node.input))]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the node; texts are decoded."""
        for attribute in self._node.attribute:
            if attribute.name == name:
                value = onnx.helper.get_attribute_value(attribute)
                return value.decode(errors="replace") if isinstance(value, bytes) else value
        return default

    def _shape(self, names: Sequence[str], index: int) -> Shape:
        name = names[index] if index < len(names) else ""
        if name not in self._shapes:
            raise UnknownShapeError(name)
        return self._shapes[name]


Formula = Callable[[Call], int]


def _convolution(weight: int = 1, last: bool = False) -> Formula:
    """Every weight meets every output position; ``last`` where channels always come last."""

    def macs(call: Call) -> int:
        y = call.y()
        channels = -1 if last or call.attribute("channels_last", 0) else 1
        return math.prod(call.x(weight)) * _without(y, channels)

    return macs


def _without(shape: Shape, axis: int) -> int:
    """Product of all extents but one."""
    return math.prod(extent for i, extent in enumerate(shape) if i != axis % len(shape))


def _transposed_convolution(call: Call) -> int:
    # every weight meets every input position
    return math.prod(call.x(1)) * _without(call.x(0), 1)


def _causal_convolution(call: Call) -> int:
    # depthwise, and padded so that there are as many outputs as inputs
    return math.prod(call.x(1)) * _without(call.x(0), 1)


def _product(call: Call) -> int:
    # (.., M, K) by (.., K, N): each output is a sum of K products
    return math.prod(call.y()) * call.x(0)[-1]


def _gemm(call: Call) -> int:
    return math.prod(call.y()) * call.x(0)[0 if call.attribute("transA", 0) else -1]


def _transposed_product(call: Call) -> int:
    a = call.x(0)
    inner = a[-1]
    if call.attribute("transA", 0) and len(a) > 1:
        inner = a[0] if call.attribute("transBatchA", 0) else a[-2]
    return math.prod(call.y()) * inner


def _recurrent(call: Call) -> int:
    # both kinds of weights meet every step of every sequence
    x = call.x(0)
    return (math.prod(call.x(1)) + math.prod(call.x(2))) * x[0] * x[1]


def _linear_model(call: Call) -> int:
    x = call.x(0)
    return len(call.attribute("coefficients", ())) * (x[0] if len(x) > 1 else 1)


def _scores_and_mix(rows: int, columns: int, query: int, value: int) -> int:
    """Products of queries with keys, and of what they weigh with values.

    Args:
        rows: queries of all samples.
        columns: keys that each of them meets; a causal mask does not make them fewer.
        query: width of a query over all heads.
        value: width of a mixed value over all heads.
    """
    return rows * columns * (query + value)


def _packed_projection(past: int) -> Formula:
    """com.microsoft Attention and QAttention: projections of one input, then attention."""

    def macs(call: Call) -> int:
        batch, length, _ = call.x(0)
        weight = call.x(1)
        sizes = call.attribute("qkv_hidden_sizes") or [weight[-1] // 3] * 3
        earlier = call.x(past)[-2] if call.has(past) else 0
        rows = batch * length
        mixed = _scores_and_mix(rows, length + earlier, sizes[0], sizes[2])
        return rows * math.prod(weight) + mixed

    return macs


def _multi_head(call: Call) -> int:
    """com.microsoft MultiHeadAttention, whose operands are projected or packed by other nodes."""
    query = call.x(0)
    batch, length = query[:2]
    if len(query) == 5:  # (batch, length, heads, 3, width): all three in one
        keys, width = length, query[2] * query[4]
        value = width
    elif call.has(1):
        width, key = query[2], call.x(1)
        if len(key) == 5:  # (batch, keys, heads, 2, width): keys and values in one
            keys, value = key[1], key[2] * key[4]
        elif len(key) == 4:  # (batch, heads, keys, width)
            given = call.x(2)
            keys, value = key[2], given[1] * given[3]
        else:
            keys, value = key[1], call.x(2)[2]
    else:
        raise UnknownShapeError("key")
    earlier = call.x(6)[2] if call.has(6) else 0
    return _scores_and_mix(batch * length, keys + earlier, width, value)


def _grouped_query(call: Call) -> int:
    """com.microsoft GroupQueryAttention; queries meet what the cache holds after this call."""
    batch, length, width = call.x(0)
    heads, groups = call.attribute("num_heads", 1), call.attribute("kv_num_heads", 1)
    if not call.has(1):  # queries, keys and values in one
        width = width // (heads + 2 * groups) * heads
    try:
        keys = call.y(1)[2]
    except UnknownShapeError:
        keys = length + (call.x(3)[2] if call.has(3) else 0)
    return _scores_and_mix(batch * length, keys, width, width)


def _attention(call: Call) -> int:
    """Attention of the default domain, on (batch, length, heads * width) or four axes."""
    query, key, value = call.x(0), call.x(1), call.x(2)
    earlier = call.x(4)[2] if call.has(4) else 0
    if len(query) == 4:
        batch, heads, length, width = query
        return _scores_and_mix(batch * length, key[2] + earlier, heads * width, heads * value[3])
    heads, groups = call.attribute("q_num_heads", 1), call.attribute("kv_num_heads", 1)
    mixed = heads * (value[2] // groups)
    return _scores_and_mix(query[0] * query[1], key[1] + earlier, query[2], mixed)


def _einsum(call: Call) -> int:
    return einsum_macs(call.attribute("equation", ""), call.operands)


_DEFAULT: dict[str, Formula] = {
    "Attention": _attention,
    "CausalConvWithState": _causal_convolution,
    "Conv": _convolution(),
    "ConvInteger": _convolution(),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution(),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "MatMul": _product,
    "MatMulInteger": _product,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product,
    "RNN": _recurrent,
}

_MICROSOFT: dict[str, Formula] = {
    "Attention": _packed_projection(4),
    "CausalConvWithState": _causal_convolution,
    "ConvTransposeWithDynamicPads": _transposed_convolution,
    "DynamicQuantizeLSTM": _recurrent,
    "DynamicQuantizeMatMul": _product,
    "FusedConv": _convolution(),
    "FusedGemm": _gemm,
    "FusedMatMul": _transposed_product,
    "FusedMatMulActivation": _transposed_product,
    "GemmFastGelu": _product,
    "GemmFloat8": _gemm,
    "GroupQueryAttention": _grouped_query,
    "MatMulBnb4": _product,
    "MatMulFpQ4": _product,
    "MatMulInteger16": _product,
    "MatMulIntegerToFloat": _product,
    "MatMulNBits": _product,
    "MultiHeadAttention": _multi_head,
    "NhwcConv": _convolution(last=True),
    "NhwcFusedConv": _convolution(last=True),
    "QAttention": _packed_projection(8),
    "QGemm": _gemm,
    "QLinearConv": _convolution(3),
    "SparseToDenseMatMul": _transposed_product,
    "TransposeMatMul": _transposed_product,
}

_FORMULAS: dict[str, dict[str, Formula]] = {
    **dict.fromkeys(DEFAULT_DOMAINS, _DEFAULT),
    MICROSOFT: _MICROSOFT,
    "ai.onnx.ml": {"LinearClassifier": _linear_model, "LinearRegressor": _linear_model},
}

_BY_ALGORITHM = "its work depends on the algorithm"
_NO_FORMULA = "it has no formula yet"

#: operators of well-known domains that contract, but have no formula
_UNCOUNTABLE = {(domain, op): _BY_ALGORITHM for domain in DEFAULT_DOMAINS for op in ("DFT", "STFT")}
_UNCOUNTABLE |= {
    (domain, op): _NO_FORMULA
    for domain in DEFAULT_DOMAINS
    for op in ("FlexAttention", "LinearAttention")
}
_UNCOUNTABLE |= {("ai.onnx.ml", op): _NO_FORMULA for op in ("SVMClassifier", "SVMRegressor")}

#: operators of ONNX Runtime that contract nothing
_FREE = frozenset({
    "BiasAdd", "BiasDropout", "BiasGelu", "BiasSoftmax", "BiasSplitGelu", "BifurcationDetector",
    "BitmaskBiasDropout", "BitmaskDropout", "BranchwiseRMSNorm", "ComplexMul", "ComplexMulConj",
    "CropAndResize", "DequantizeBFP", "DequantizeLinear", "DequantizeWithOrder",
    "DynamicTimeWarping", "EmbedLayerNormalization", "ExpandDims", "FastGelu", "GatedAdd",
    "GatedRMSNorm", "GatherBlockQuantized", "GatherND", "GatherPacked", "Gelu",
    "GemmaRotaryEmbedding", "GridSample", "GroupNorm", "IsAllFinite", "MRotaryEmbedding",
    "MaxpoolWithMask", "MulInteger", "MurmurHash3", "NGramHashMapping", "NGramRepeatBlock",
    "NhwcMaxPool", "Pad", "QEmbedLayerNormalization", "QLinearAdd", "QLinearAveragePool",
    "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu", "QLinearMul",
    "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere", "QOrderedGelu",
    "QOrderedLayerNormalization", "QuantizeBFP", "QuantizeLinear", "QuantizeWithOrder",
    "QuickGelu", "RMSNormRotary", "Range", "ReduceSumInteger", "RelativePositionBias",
    "RemovePadding", "RestorePadding", "RotaryEmbedding", "SampleOp", "ScaledSiLU",
    "SkipGroupNorm", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
    "SimplifiedLayerNormalization", "SwiGLU", "Tokenizer", "TorchEmbedding", "Trilu",
    "UnfoldTensor", "Unique", "VarlenNGramHashMapping",
})  # fmt: skip


def formula_of(node: NodeProto) -> Callable[[Mapping[str, Shape]], int] | None:
    """MACs of a node as a function of shapes; None for an operator without a formula.

    The function raises :class:`UnknownShapeError` where a shape is missing or makes no sense.
    """
    found = _FORMULAS.get(node.domain, {}).get(node.op_type)
    if found is None:
        return None

    def macs(shapes: Mapping[str, Shape]) -> int:
        try:
            return int(found(Call(node, shapes)))
        except (IndexError, ValueError, TypeError, ZeroDivisionError) as error:
            raise UnknownShapeError(str(error)) from error

    return macs


def why_uncountable(node: NodeProto) -> str:
    """Why an operator without a formula cannot be counted; empty where it contracts nothing."""
    if node.domain == MICROSOFT:
        return "" if node.op_type in _FREE else _NO_FORMULA
    if node.domain in _FORMULAS:
        return _UNCOUNTABLE.get((node.domain, node.op_type), "")
    return f"what operators of {node.domain} do is not known"
