"""Small recurrent nets of every kind, for cutting hidden units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from onnx import ModelProto

from tests.fixtures_channels import Net

INPUTS, HIDDEN, STEPS = 3, 5, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Kind:
    """A recurrent node and what is around it.

    Attributes:
        op: its operator.
        direction: ``forward | reverse | bidirectional``.
        batch_first: whether its ``layout`` is 1; ONNX Runtime has no kernel for it, the reference
            implementation of ONNX has.
        biased: whether it has a bias.
        lengths: whether sequences have different lengths.
        start: initial states: ``none | zeros | computed zeros | constant | input``.
        peepholes: whether an LSTM has peepholes.
        before_reset: ``linear_before_reset`` of a GRU.
        last: whether the last state is read, too.
    """

    op: str = "LSTM"
    direction: str = "forward"
    batch_first: bool = False
    biased: bool = True
    lengths: bool = False
    start: str = "none"
    peepholes: bool = False
    before_reset: bool = False
    last: bool = False

    @property
    def directions(self) -> int:
        """Number of directions."""
        return 2 if self.direction == "bidirectional" else 1


kinds = st.builds(
    Kind,
    op=st.sampled_from(sorted(GATES)),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    biased=st.booleans(),
    lengths=st.booleans(),
    start=st.sampled_from(["none", "zeros", "computed zeros", "constant", "input"]),
    peepholes=st.booleans(),
    before_reset=st.booleans(),
    last=st.booleans(),
)


def recurrent_net(kind: Kind, layers: int = 1, seed: int = 0) -> tuple[ModelProto, Net]:
    """A net of recurrent nodes, one behind the other, and a product that reads the states."""
    batch = 2
    shape = (batch, STEPS, INPUTS) if kind.batch_first else (STEPS, None, INPUTS)
    net = Net(seed, shape)
    x, width, ends = "x", INPUTS, []
    for number in range(layers):
        y, last = _node(net, kind, x, width, batch, number)
        width = kind.directions * HIDDEN
        if kind.batch_first:
            x = net.op("Reshape", y, net.const(0, 0, -1))
        else:
            turned = net.op("Transpose", y, perm=[0, 2, 1, 3])
            x = net.op("Reshape", turned, net.const(0, 0, -1))
        ends.append(last)
    read = net.op("MatMul", x, net.numbers(width, 4))
    if kind.last:
        axis = int(kind.batch_first)
        joined = net.op("Concat", *ends, axis=axis) if layers > 1 else ends[0]
        index = net.const(-1, name="which")
        net.weights["which"] = np.array(-1, np.int64)
        state = net.op("Gather", joined, index, axis=axis)
        net.op("Gemm", state, net.numbers(HIDDEN, 3), out="z")
    net.op("Identity", read, out="y")
    return net.model(outputs=("y", "z") if kind.last else ("y",)), net


def _node(net: Net, kind: Kind, x: str, width: int, batch: int, number: int) -> tuple[str, str]:
    directions, gates = kind.directions, GATES[kind.op]
    rows = gates * HIDDEN
    operands = [x, net.numbers(directions, rows, width), net.numbers(directions, rows, HIDDEN)]
    operands += [net.numbers(directions, 2 * rows) if kind.biased else "", ""]
    if kind.lengths:
        operands[4] = net.const(STEPS, STEPS - 1, dtype=np.int32)
    shape = (batch, directions, HIDDEN) if kind.batch_first else (directions, batch, HIDDEN)
    for _ in range(2 if kind.op == "LSTM" else 1):
        operands.append(_start(net, kind.start, shape, f"start{number}_{len(operands)}"))
    if kind.op == "LSTM" and kind.peepholes:
        operands.append(net.numbers(directions, 3 * HIDDEN))
    attributes = {"direction": kind.direction, "hidden_size": HIDDEN}
    if kind.batch_first:
        attributes["layout"] = 1
    if kind.op == "GRU":
        attributes["linear_before_reset"] = int(kind.before_reset)
    outs = [f"states{number}", f"last{number}"]
    y, last = net.ops(kind.op, *operands, outs=outs, **attributes)
    return y, last


def _start(net: Net, start: str, shape: tuple[int, ...], name: str) -> str:
    if start == "none":
        return ""
    if start == "zeros":
        return net.const(np.zeros(shape), dtype=np.float32, name=name)
    if start == "computed zeros":
        batch = net.op("Slice", net.op("Shape", "x"), net.const(1), net.const(2))
        extents = net.op("Concat", net.const(3), batch, net.const(shape[2]), axis=0)
        whole = net.op("ConstantOfShape", extents)
        part = net.op("Slice", whole, net.const(0), net.const(shape[0]), net.const(0))
        return net.op("Identity", part)
    if start == "constant":
        return net.numbers(*shape, name=name)
    net.inputs[name] = shape
    return name
