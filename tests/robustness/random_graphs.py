"""Random nets of everything that passes touch, each a function of its seed alone.

Convolutions of 1 to 3 axes with any stride, pad, dilation and groups, their transposed form,
products from either side, recurrent nodes, BatchNormalization, sums, joins, pools, gates; shared
weights, weights behind nodes, nodes without a name, outputs in the middle, batches fixed or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from tests.fixtures_channels import Net
from tests.support import Array, rng

OPSETS = (11, 13, 17, 21)
#: extents beyond which a tensor is pooled, and channels beyond which none are joined
_LONG, _WIDE = 14, 32


class Tensor(NamedTuple):
    """A name, the channels, the extents."""

    name: str
    channels: int
    size: tuple[int, ...]


class Case(NamedTuple):
    """A model with one input ``x`` and samples for it: batches along axis 0."""

    proto: ModelProto
    batch: int | None
    shape: tuple[int, ...]

    def feed(self, seed: int) -> dict[str, Array]:
        """One batch, of two samples where it is free."""
        return {"x": self.samples(2 if self.batch is None else 1, seed)}

    def samples(self, count: int, seed: int) -> Array:
        """Off centre, and smooth along the last axis, as real ones are."""
        random = rng(seed, 5)
        x = random.normal(size=(count * (self.batch or 1), *self.shape))
        offset = random.normal(size=(self.shape[0], *[1] * (len(self.shape) - 1)))
        return (x + np.roll(x, 1, -1) + np.roll(x, 2, -1) + offset).astype(np.float32)


def random_graph(seed: int) -> Case:
    """The net of that seed."""
    return _Maker(seed).case()


class _Maker:
    def __init__(self, seed: int) -> None:
        self.random = rng(seed, 23)
        self.axes = self.pick(1, 1, 2, 2, 2, 3)
        self.opset = self.pick(*OPSETS)
        self.batch: int | str | None = self.pick(None, "N", 1, 2)
        longest = 7 if self.axes == 3 else 12
        size = tuple(self.random.integers(5, longest, self.axes).tolist())
        channels = self.pick(1, 3, 4, 8)
        self.net = Net(seed, (self.batch, channels, *size))
        self.tensors = [Tensor("x", channels, size)]
        self.kernels: list[tuple[str, tuple[int, ...]]] = []

    def pick(self, *values: Any) -> Any:
        return values[int(self.random.integers(len(values)))]

    def chance(self, part: float) -> bool:
        return bool(self.random.random() < part)

    def each(self, *values: int, count: int | None = None) -> list[int]:
        return [self.pick(*values) for _ in range(self.axes if count is None else count)]

    def case(self) -> Case:
        steps = (self.conv, self.conv, self.conv, self.conv, self.transposed, self.summed,
                 self.joined, self.pooled, self.gated, self.channels_last, self.scaled)  # fmt: skip
        self.conv()
        for _ in range(self.pick(2, 3, 4, 5, 6)):
            self.pick(*steps)()
        outputs = ["y", *self.outputs()]
        self.head()
        self.weights_behind_nodes()
        for node in self.net.nodes:
            if self.chance(0.1):
                node.name = ""
        _, channels, size = self.tensors[0]
        fixed = self.batch if isinstance(self.batch, int) else None
        return Case(self.net.model(self.opset, outputs), fixed, (channels, *size))

    # what a step reads and makes

    def recent(self) -> Tensor:
        found: Tensor = self.tensors[-1] if self.chance(0.7) else self.pick(*self.tensors)
        return found

    def made(self, name: str, channels: int, size: Sequence[int]) -> None:
        while any(s > _LONG for s in size):
            step = [2 if s > _LONG else 1 for s in size]
            name = self.net.op("MaxPool", name, kernel_shape=step, strides=step)
            size = [s // t for s, t in zip(size, step, strict=True)]
        self.tensors.append(Tensor(name, channels, tuple(size)))

    def activated(self, name: str) -> str:
        op = self.pick(
            "", "Relu", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Clip", "Softplus"
        )
        if op == "Clip":
            return self.net.op("Clip", name, *(self.net.const(np.array(v), dtype=np.float32)
                                               for v in (-1.0, 2.0)))  # fmt: skip
        return self.net.op(op, name) if op else name

    def finished(self, name: str, channels: int, size: Sequence[int]) -> None:
        if self.chance(0.5):
            name = self.net.norm(name, channels)
        self.made(self.activated(name), channels, size)

    # steps

    def conv(self) -> None:
        x, c, size = self.recent()
        groups = self.pick(*[1] * 4, *[g for g in (2, 3, 4, c) if c % g == 0])
        n = groups * self.pick(*([1, 2] if groups == c else [3, 4, 6]), *([8, 16] * (groups == 1)))
        kernel, strides, dilations = (
            self.each(1, 2, 3, 3, 5),
            self.each(1, 1, 2),
            self.each(1, 1, 2),
        )
        if self.chance(0.3):
            kernel = [self.pick(1, 3)] * self.axes
        auto = self.pick("NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
        pads = self.each(0, 1, 2, count=2 * self.axes)
        if auto.startswith("SAME"):
            dilations = [1] * self.axes  # ONNX Runtime has no others here
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        both = [a + b for a, b in zip(pads[: self.axes], pads[self.axes :], strict=True)]
        if auto != "NOTSET":
            both = [0] * self.axes
        if auto.startswith("SAME"):
            out = [-(-s // t) for s, t in zip(size, strides, strict=True)]
        else:
            out = [(s + b - r) // t + 1
                   for s, b, r, t in zip(size, both, reach, strides, strict=True)]  # fmt: skip
            if min(s + b - r for s, b, r in zip(size, both, reach, strict=True)) < 0:
                return
        padding = {"auto_pad": auto} if auto != "NOTSET" else {"pads": pads}
        weight = self.kernel(n, c // groups, *kernel)
        operands = [x, weight, *([self.net.numbers(n)] if self.chance(0.6) else [])]
        if self.chance(0.5):
            padding["kernel_shape"] = kernel
        y = self.net.op("Conv", *operands, strides=strides, dilations=dilations, group=groups,
                        **padding)  # fmt: skip
        self.finished(y, n, out)

    def kernel(self, *shape: int) -> str:
        """A new weight, or one that another node of this shape has."""
        like = [name for name, has in self.kernels if has == shape]
        if like and self.chance(0.5):
            return str(self.pick(*like))
        name = self.net.numbers(*shape)
        self.net.weights[name] /= np.float32(np.sqrt(math.prod(shape[1:])))
        self.kernels.append((name, shape))
        return name

    def transposed(self) -> None:
        x, c, size = self.recent()
        groups = self.pick(1, 1, *[g for g in (2, 4) if c % g == 0])
        n = groups * self.pick(2, 3, 4, 6)
        kernel, strides, dilations = self.each(1, 2, 3, 4), self.each(1, 2), self.each(1, 1, 2)
        extra = [self.pick(*range(s)) for s in strides]
        pads = self.each(0, 0, 1, count=2 * self.axes)
        attributes: dict[str, Any] = {"pads": pads}
        both = [a + b for a, b in zip(pads[: self.axes], pads[self.axes :], strict=True)]
        whole = [(s - 1) * t + (k - 1) * d + 1 + e for s, t, k, d, e in
                 zip(size, strides, kernel, dilations, extra, strict=True)]  # fmt: skip
        auto = self.pick("", "", "VALID", "SAME_UPPER", "SAME_LOWER")
        filled = all(w >= s * t for w, s, t in zip(whole, size, strides, strict=True))
        # of these, shape inference and the kernel of ONNX Runtime make different sizes
        if auto and not (auto.startswith("SAME") and (any(extra) or not filled)):
            attributes = {"auto_pad": auto}
            both = [0] * self.axes
            if auto.startswith("SAME"):
                both = [max(w - s * t, 0) for w, s, t in zip(whole, size, strides, strict=True)]
        out = [w - b for w, b in zip(whole, both, strict=True)]
        if min(out) < 1:
            return
        if any(extra):
            attributes["output_padding"] = extra
        weight = self.net.numbers(c, n // groups, *kernel)
        self.net.weights[weight] /= np.float32(np.sqrt(c / groups * math.prod(kernel)))
        operands = [x, weight, *([self.net.numbers(n)] if self.chance(0.6) else [])]
        y = self.net.op("ConvTranspose", *operands, strides=strides, dilations=dilations,
                        group=groups, **attributes)  # fmt: skip
        self.finished(y, n, out)

    def summed(self) -> None:
        x, c, size = self.recent()
        like = [t.name for t in self.tensors if (t.channels, t.size) == (c, size)]
        other = self.pick(*like)
        if other == x:  # a residual branch of its own
            other = self.net.conv(x, c, c, self.pick(1, 3), axes=self.axes)
        self.made(self.activated(self.net.op("Add", *self.pick((x, other), (other, x)))), c, size)

    def joined(self) -> None:
        x, c, size = self.recent()
        other = self.pick(*[t for t in self.tensors if t.size == size])
        if c + other.channels <= _WIDE:
            joint = self.net.op("Concat", x, other.name, axis=self.pick(1, -1 - self.axes))
            self.made(joint, c + other.channels, size)

    def pooled(self) -> None:
        x, c, size = self.recent()
        kernel, strides = self.each(2, 3), self.each(1, 2)
        if min(s - k for s, k in zip(size, kernel, strict=True)) < 0:
            return
        y = self.net.op(self.pick("MaxPool", "AveragePool"), x, kernel_shape=kernel,
                        strides=strides)  # fmt: skip
        out = [(s - k) // t + 1 for s, k, t in zip(size, kernel, strides, strict=True)]
        self.made(y, c, out)

    def gated(self) -> None:
        x, c, size = self.recent()
        inner = self.net.conv(self.net.op("GlobalAveragePool", x), c, 4, 1, axes=self.axes)
        gate = self.net.conv(self.net.relu(inner), 4, c, 1, axes=self.axes)
        self.made(self.net.op("Mul", x, self.net.op("Sigmoid", gate)), c, size)

    def scaled(self) -> None:
        x, c, size = self.recent()
        operand = self.net.numbers(*self.pick((c,), (1, c)), *[1] * self.axes, low=0.5)
        self.made(self.net.op(self.pick("Mul", "Add"), *self.pick((x, operand), (operand, x))),
                  c, size)  # fmt: skip

    def channels_last(self) -> None:
        """A product along the channels, from the right or, on one axis, from the left."""
        x, c, size = self.recent()
        n = self.pick(4, 8, 12)
        if self.axes == 1 and self.chance(0.5):
            y = self.net.op("MatMul", self.kernel(n, c), x)
            if self.chance(0.7):
                y = self.net.op("Add", y, self.net.numbers(*self.pick((n, 1), (1, n, 1))))
            self.made(self.activated(y), n, size)
            return
        order = [0, *range(2, 2 + self.axes), 1]
        y = self.net.op("Transpose", x, perm=order)
        y = self.net.op("MatMul", y, self.kernel(c, n))
        if self.chance(0.7):
            bias = self.net.numbers(*self.pick((n,), (1, n), ()))
            y = self.net.op("Add", *self.pick((y, bias), (bias, y)))
        y = self.net.op("Transpose", self.activated(y), perm=np.argsort(order).tolist())
        self.made(y, n, size)

    # the end

    def outputs(self) -> list[str]:
        """Tensors in the middle that are outputs too."""
        inner = [t.name for t in self.tensors[1:]]
        return [self.pick(*inner)] if self.chance(0.3) else []

    def head(self) -> None:
        used = {name for node in self.net.nodes for name in node.input}
        last, c, size = self.tensors[-1]
        loose = [t for t in self.tensors[1:-1] if t.name not in used]
        if self.axes == 1 and self.chance(0.4):
            parts, width = [self.recurrent(last, c)], 6
        elif self.chance(0.5) and c * math.prod(size) <= 1000:
            parts, width = [self.net.op("Flatten", last)], c * math.prod(size)
        else:
            parts, width = [self.averaged(last)], c
        parts += [self.averaged(t.name) for t in loose]
        x = self.net.op("Concat", *parts, axis=1) if loose else parts[0]
        width += sum(t.channels for t in loose)
        hidden = self.pick(8, 16, 24)
        self.product(self.activated(self.product(x, width, hidden)), hidden, self.pick(1, 5, 10),
                     out="y")  # fmt: skip

    def averaged(self, name: str) -> str:
        return self.net.op("Flatten", self.net.op("GlobalAveragePool", name))

    def recurrent(self, name: str, c: int) -> str:
        op, gates = self.pick(("GRU", 3), ("LSTM", 4), ("RNN", 1))
        x = self.net.op("Transpose", name, perm=[2, 0, 1])
        rows, more = 6 * gates, []
        if self.chance(0.6):
            more = [self.net.numbers(1, 2 * rows)]
        weights = [self.net.numbers(1, rows, c), self.net.numbers(1, rows, 6)]
        last = self.net.ops(op, x, *weights, *more, outs=["", ""], hidden_size=6)[1]
        return self.net.op("Reshape", last, self.net.const(-1, 6))

    def product(self, x: str, c: int, n: int, out: str = "") -> str:
        kind = self.pick("gemm", "gemm", "turned", "matmul")
        if kind == "matmul":
            y = self.net.op("MatMul", x, self.kernel(c, n))
            return self.net.op("Add", y, self.net.numbers(*self.pick((n,), (1, n))), out=out)
        attributes: dict[str, Any] = {}
        if kind == "turned":
            x = self.net.op("Transpose", x, perm=[1, 0])
            attributes["transA"] = 1
        if self.chance(0.3):
            attributes |= {"alpha": 0.5, "beta": 1.5}
        shape = (c, n)
        if self.chance(0.5):
            attributes["transB"], shape = 1, (n, c)
        weight = self.net.numbers(*shape)
        self.net.weights[weight] /= np.float32(np.sqrt(c))
        bias = [self.net.numbers(*self.pick((n,), (1, n), (1,)))] if self.chance(0.8) else []
        return self.net.op("Gemm", x, weight, *bias, out=out, **attributes)

    def weights_behind_nodes(self) -> None:
        """Some initializers become Constant nodes, some go through an Identity."""
        for name, value in list(self.net.weights.items()):
            if value.dtype != np.float32 or not self.chance(0.1):
                continue
            del self.net.weights[name]
            if self.chance(0.5):
                tensor = numpy_helper.from_array(np.asarray(value))
                node = helper.make_node("Constant", [], [name], value=tensor)
            else:
                self.net.weights[f"{name}_source"] = value
                node = helper.make_node("Identity", [f"{name}_source"], [name])
            self.net.nodes.insert(0, node)
