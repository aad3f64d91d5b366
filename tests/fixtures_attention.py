"""Blocks of attention as exporters write them, with random weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.support import rng

__all__ = ["FORMS", "ROTARY", "Form", "attention"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Form:
    """How a block is written.

    Attributes:
        heads: number of heads.
        width: channels of a head.
        keys: number of heads of keys and values.
        inputs: features of the block's input and output.
        length: positions.
        fused: how one layer makes queries, keys and values: "" (three layers), ``split``,
            ``slice`` or ``axis`` (an axis of three in the Reshape, then Slice and Squeeze).
        scale: ``before``, ``after``, ``both`` or ``shape`` (computed from the width at run time);
            ``stated`` for an attribute of one node.
        mask: "", ``add`` (of relative positions), ``where`` or ``nan`` (as PyTorch writes it).
        target: of Reshapes: ``constant``, ``computed`` or ``copied`` (zeros).
        biased: whether layers have biases.
        gemm: whether layers are Gemm nodes on two axes.
        crossed: whether keys and values come from another sequence.
        folded: whether keys are transposed in three dimensions, as dynamo exports do.
        opset: version of the operators.
        node: one Attention node for the block (opset 23): "", ``folded`` (three axes) or ``apart``
            (four).
        values: channels of a head of values; 0 for as many as of queries.
        rotary: rotary embedding of queries and keys: "", ``nodes`` or ``node`` (opset 23).
        softcap: bound of the scores, where one node has them; 0 for none.
        causal: whether no query looks ahead, where one node has them.
    """

    heads: int = 3
    width: int = 8
    keys: int = 0
    inputs: int = 20
    length: int = 6
    fused: str = ""
    scale: str = "after"
    mask: str = ""
    target: str = "constant"
    biased: bool = True
    gemm: bool = False
    crossed: bool = False
    folded: bool = False
    opset: int = 17
    node: str = ""
    values: int = 0
    rotary: str = ""
    softcap: float = 0.0
    causal: bool = False

    @property
    def value_width(self) -> int:
        """Channels of a head of values."""
        return self.values or self.width


FORMS = {
    "torch": Form(target="computed", scale="both", mask="nan"),
    "torch_old": Form(target="computed", scale="shape", opset=14),
    "dynamo": Form(folded=True, target="computed", scale="both", opset=18),
    "paddle": Form(fused="axis", scale="before", opset=11),
    "split": Form(fused="split", mask="add", opset=13),
    "slice": Form(fused="slice", target="copied"),
    "unbiased": Form(biased=False, scale="before", mask="where"),
    "gemm": Form(gemm=True),
    "crossed": Form(crossed=True, mask="add"),
    "grouped": Form(heads=4, keys=2),
    "one_key": Form(heads=4, keys=1, target="computed"),
    "opset23": Form(opset=23),
    "node": Form(opset=23, node="folded"),
    "node_apart": Form(opset=23, node="apart", target="computed", mask="where"),
    "node_grouped": Form(heads=4, keys=2, opset=24, node="folded", scale="stated", mask="add"),
    "node_one_key": Form(heads=4, keys=1, opset=23, node="apart", biased=False, softcap=2.0),
    "node_fused": Form(opset=24, node="folded", fused="split", causal=True),
    "node_axis": Form(opset=23, node="apart", fused="axis", mask="where"),
    "node_crossed": Form(opset=23, node="folded", crossed=True, values=6, scale="stated"),
}


#: blocks with a rotary embedding, whose queries and keys keep their basis
ROTARY = {
    "nodes": Form(rotary="nodes"),
    "nodes_grouped": Form(rotary="nodes", heads=4, keys=2, target="computed", fused="split"),
    "nodes_node": Form(rotary="nodes", heads=4, keys=2, opset=23, node="apart"),
    "node": Form(rotary="node", opset=23, target="computed"),
    "node_apart": Form(rotary="node", heads=4, keys=2, opset=23, node="apart"),
    "node_folded": Form(rotary="node", heads=4, keys=2, opset=24, node="folded"),
}


@dataclass
class _Writer:
    form: Form
    seed: int
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def node(self, op: str, inputs: list[str], output: str = "", **attrs: Any) -> str:
        output = output or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], f"n_{output}", **attrs))
        return output

    def constant(self, values: Any, stem: str = "c") -> str:
        name = f"{stem}_{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def layer(self, x: str, name: str, outputs: int, inputs: int) -> str:
        r = rng(self.seed, len(self.constants))
        weight = self.constant(_float(r.normal(size=(inputs, outputs)) / inputs**0.5), name)
        bias = self.constant(_float(r.normal(size=outputs)), f"{name}_bias")
        if self.form.gemm:
            flat = self.node("Reshape", [x, self.integers(-1, inputs)])
            made = self.node("Gemm", [flat, weight, bias], f"{name}_flat")
            shape = [self.extent(x, 0), self.extent(x, 1), self.integers(outputs)]
            return self.node("Reshape", [made, self.node("Concat", shape, axis=0)])
        product = self.node("MatMul", [x, weight], name)
        return self.node("Add", [product, bias]) if self.form.biased else product

    def extent(self, x: str, axis: int) -> str:
        shape = self.node("Shape", [x])
        return self.node("Gather", [shape, self.integers(axis)], axis=0)

    def shaped(self, x: str, *sizes: int) -> str:
        """Reshape to ``sizes``, the first two of which are those of ``x`` at run time."""
        if self.form.target == "constant":
            target = self.integers(-1, self.form.length, *sizes)
        elif self.form.target == "copied":
            target = self.integers(0, 0, *sizes)
        else:
            parts = [self.extent(x, 0), self.extent(x, 1), *(self.integers(s) for s in sizes)]
            target = self.node("Concat", parts, axis=0)
        return self.node("Reshape", [x, target])

    def projections(self, x: str, other: str) -> list[str]:
        """Queries, keys and values ``(batch, length, heads, width)``, or with heads folded."""
        f, kept = self.form, self.form.keys or self.form.heads
        counts, widths = [f.heads, kept, kept], [f.width, f.width, f.value_width]
        if not f.fused:
            made = [
                self.layer(source, name, count * width, f.inputs)
                for source, name, count, width in zip((x, other, other), "qkv", counts, widths,
                                                      strict=True)
            ]  # fmt: skip
            return [self.apart(*each) for each in zip(made, counts, widths, strict=True)]
        whole = self.layer(x, "qkv", sum(counts) * f.width, f.inputs)
        if f.fused == "axis":
            five = self.node("Reshape", [whole, self.integers(-1, f.length, 3, f.heads, f.width)])
            first = self.node("Transpose", [five], perm=[2, 0, 1, 3, 4])
            thirds = [self.sliced(first, i, i + 1, 0) for i in range(3)]
            if f.opset < 13:
                return [self.node("Squeeze", [third], axes=[0]) for third in thirds]
            return [self.node("Squeeze", [third, self.integers(0)]) for third in thirds]
        ends = np.cumsum([0, *counts]) * f.width
        if f.fused == "slice":
            parts = [self.sliced(whole, a, b, 2)
                     for a, b in pairwise(ends.tolist())]  # fmt: skip
        else:
            parts = [f"part_{i}" for i in range(3)]
            sizes = self.integers(*(c * f.width for c in counts))
            self.nodes.append(helper.make_node("Split", [whole, sizes], parts, "split", axis=2))
        return [self.apart(*each) for each in zip(parts, counts, widths, strict=True)]

    def apart(self, x: str, heads: int, width: int) -> str:
        return x if self.form.node == "folded" else self.shaped(x, heads, width)

    def sliced(self, x: str, start: int, end: int, axis: int) -> str:
        bounds = [self.integers(i) for i in (start, end, axis)]
        return self.node("Slice", [x, *bounds])

    def repeated(self, x: str) -> str:
        """Heads ``(batch, keys, length, width)`` repeated for all that share them."""
        f = self.form
        if not f.keys:
            return x
        many = f.heads // f.keys
        axis = self.node("Unsqueeze", [x, self.integers(2)])
        wide = self.node("Expand", [axis, self.integers(1, 1, many, 1, 1)])
        return self.node("Reshape", [wide, self.integers(-1, f.heads, f.length, f.width)])

    def scaled(self, x: str, power: float = 0.5) -> str:
        return self.node("Mul", [x, self.constant(np.float32(self.form.width**-power))])

    def transposed(self, k: str) -> str:
        """Keys ``(batch, heads, width, length)`` of keys ``(batch, heads, length, width)``."""
        f = self.form
        if not f.folded:
            return self.node("Transpose", [k], perm=[0, 1, 3, 2])
        parts = [self.integers(-1), self.extent(k, 2), self.extent(k, 3)]
        flat = self.node("Reshape", [k, self.node("Concat", parts, axis=0)])
        turned = self.node("Transpose", [flat], perm=[0, 2, 1])
        back = [self.extent(k, i) for i in (0, 1, 3, 2)]
        return self.node("Reshape", [turned, self.node("Concat", back, axis=0)])

    def scores(self, q: str, k: str) -> str:
        f = self.form
        if f.scale == "shape":
            width = self.node("Cast", [self.extent(q, 3)], to=TensorProto.FLOAT)
            return self.node("Div", [self.product(q, k), self.node("Sqrt", [width])])
        if f.scale in ("before", "both"):
            q = self.scaled(q, 0.5 if f.scale == "before" else 0.25)
        k = self.transposed(k)
        if f.scale == "both":
            k = self.scaled(k, 0.25)
        scores = self.node("MatMul", [q, k], "scores")
        return self.scaled(scores) if f.scale == "after" else scores

    def product(self, q: str, k: str) -> str:
        return self.node("MatMul", [q, self.transposed(k)], "scores")

    def turned(self, x: str, heads: int) -> str:
        """Queries or keys behind a rotary embedding."""
        f, half = self.form, self.form.width // 2
        angles = np.arange(f.length)[:, None] / 10.0 ** np.linspace(0, 1, half)
        if f.rotary == "node":
            tables = [self.constant(_float(t)) for t in (np.cos(angles), np.sin(angles))]
            places = self.integers(*range(f.length))
            target = self.node("Concat", [self.extent(x, 0), self.integers(f.length)], axis=0)
            positions = self.node("Expand", [places, target])
            attrs = {"num_heads": heads} if f.node == "folded" else {}
            return self.node("RotaryEmbedding", [x, *tables, positions], **attrs)
        both = np.concatenate([angles, angles], axis=1)
        first, second = self.sliced(x, 0, half, 3), self.sliced(x, half, f.width, 3)
        other = self.node("Concat", [self.node("Neg", [second]), first], axis=3)
        parts = [
            self.node("Mul", [of, self.constant(_float(t))])
            for of, t in ((x, np.cos(both)), (other, np.sin(both)))
        ]
        return self.node("Add", parts)

    def whole(self, heads: list[str]) -> str:
        """Mixed values, of one Attention node."""
        f = self.form
        table = rng(self.seed, 99).normal(size=(1, f.heads, f.length, f.length))
        masks = {"add": _float(table), "where": table > -0.8}
        inputs = [*heads, *([self.constant(masks[f.mask])] if f.mask else [])]
        attrs: dict[str, Any] = {"is_causal": int(f.causal), "softcap": f.softcap}
        if f.node == "folded":
            attrs |= {"q_num_heads": f.heads, "kv_num_heads": f.keys or f.heads}
        if f.scale == "stated":
            attrs["scale"] = 0.4
        return self.node("Attention", inputs, "mixed", **attrs)

    def shares(self, scores: str) -> str:
        """Softmax of the scores under the mask."""
        f = self.form
        if f.mask:
            table = rng(self.seed, 99).normal(size=(1, f.heads, f.length, f.length))
        if f.mask == "add":
            scores = self.node("Add", [scores, self.constant(_float(table))])
        elif f.mask == "where":
            hidden = self.constant(np.float32(-1e9))
            scores = self.node("Where", [self.constant(table > -0.8), scores, hidden])
        shares = self.node("Softmax", [scores], "softmax", axis=3)
        if f.mask == "nan":
            odd = self.node("IsNaN", [shares])
            return self.node("Where", [odd, self.constant(np.float32(0)), shares])
        return shares

    def write(self) -> ModelProto:
        f = self.form
        heads = self.projections("x", "other" if f.crossed else "x")
        if f.node != "folded":
            heads = [self.node("Transpose", [h], perm=[0, 2, 1, 3]) for h in heads]
        if f.rotary:
            counts = [f.heads, f.keys or f.heads]
            turned = [self.turned(h, n) for h, n in zip(heads[:2], counts, strict=True)]
            heads = [*turned, heads[2]]
        if f.node:
            mixed = self.whole(heads)
        else:
            q, k, v = heads
            shares = self.shares(self.scores(q, self.repeated(k)))
            mixed = self.node("MatMul", [shares, self.repeated(v)], "mixed")
        features = f.heads * f.value_width
        if f.node != "folded":
            mixed = self.shaped(self.node("Transpose", [mixed], perm=[0, 2, 1, 3]), features)
        read = self.layer(mixed, "o", f.inputs, features)
        self.node("Add", [read, "x"], "y")
        names = ["x", *(["other"] if f.crossed else [])]
        shape = ["batch", f.length, f.inputs]
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in names]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        stored = [numpy_helper.from_array(v, n) for n, v in self.constants.items()]
        graph = helper.make_graph(self.nodes, "attention", inputs, [output], stored)
        opsets = [helper.make_opsetid("", f.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if f.opset < 23 else 11)


def attention(form: Form, seed: int = 0) -> ModelProto:
    """A block of attention with a residual sum around it.

    Args:
        form: how it is written.
        seed: of the weights.
    """
    return _Writer(form, seed).write()


def _float(values: Array) -> Array:
    return values.astype(np.float32)
