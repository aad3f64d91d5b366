"""How much the gates of recurrent nodes move their states, streamed over the data.

With ``a = W x_t + R h_{t-1} + b`` and the default activations:

    LSTM   h = o tanh c,  c = f c' + i g:   dh/da_i = o (1 - tanh^2 c) g i (1 - i)
                                            dh/da_o = tanh c  o (1 - o)
                                            dh/da_f = o (1 - tanh^2 c) c' f (1 - f)
                                            dh/da_g = o (1 - tanh^2 c) i (1 - g^2)
    GRU    h = (1 - z) n + z h':            dh/da_z = (h' - n) z (1 - z)
                                            dh/da_n = (1 - z) (1 - n^2), through r for ``R``
                                            dh/da_r = dh/da_n dn/dr r (1 - r)
    RNN    h = tanh a:                      dh/da   = 1 - h^2

The cell ``c`` follows from the output, ``tanh c = h / o``, and ``f c' = c - i g``; so no step has
to be run again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.sharded_sums import ShardedSums
from onnx_lowrank.chains.state_geometry import StateGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.linalg.gate_metric import GateMetric

__all__ = ["GateSquares", "reads_gates"]

Array = npt.NDArray[np.floating[Any]]

#: steps that are looked at, of all samples and in each direction
_ROWS = 20_000
#: activations of each operator that the derivatives are written down for
_KNOWN: dict[str, list[tuple[str, ...]]] = {
    "LSTM": [("sigmoid", "tanh", "tanh")],
    "GRU": [("sigmoid", "tanh")],
    "RNN": [("tanh",), ("relu",)],
}


def reads_gates(graph: Graph, states: PlacedLayer) -> bool:
    """Whether the derivatives of a node are those of the module."""
    node = states.nodes[0]
    if len(node.inputs) > 7 and node.inputs[7].name:  # peepholes
        return False
    return _activations(graph, states) is not None and not graph.attribute(node, "input_forget", 0)


def _activations(graph: Graph, states: PlacedLayer) -> tuple[str, ...] | None:
    """The activations of all directions, if they are the same and known."""
    known, directions = _KNOWN[states.op], states.value.directions
    given = graph.attribute(states.nodes[0], "activations")
    if not given:
        return known[0]
    names = [str(name).lower() for name in given]
    found = tuple(names[: len(known[0])])
    return found if found in known and names == list(found) * directions else None


class GateSquares:
    """Streams a recurrent node's input and output into squared derivatives of its state.

    Args:
        graph: the model.
        layer: product of the node with its input.
        states: product of the node with its states.
        samples: number of samples to come.

    Attributes:
        sums: what has been read, shard by shard.
    """

    def __init__(self, graph: Graph, layer: PlacedLayer, states: PlacedLayer, samples: int) -> None:
        self._layer, self._states, self._samples = layer, states, samples
        node = layer.nodes[0]
        assert isinstance(states.geometry, StateGeometry)
        self._geometry = states.geometry
        self._before_reset = bool(graph.attribute(node, "linear_before_reset", 0))
        self._relu = _activations(graph, states) == ("relu",)
        self._batch_first = states.geometry.batch_first
        directions, rows = states.value.directions, states.shape[0] // states.value.directions
        self.sums = ShardedSums((2, directions, rows))

    def update(self, x: Array, y: Array, count: int) -> None:
        """Add a batch.

        Args:
            x: what the node reads.
            y: its states at all steps.
            count: number of samples.
        """
        before = self._geometry.patches(y)
        if self._batch_first:
            x, y = x.swapaxes(0, 1), np.moveaxis(y, 0, 2)
        steps, directions, batch, hidden = y.shape
        wanted = math.ceil(_ROWS * count / self._samples)
        every = max(steps * batch // max(wanted, 1), 1)
        kept = before.shape[1] // max(batch, 1)
        inner, outer = self._maps()
        found = 0
        for d in range(directions):
            first = 0 if self._geometry.backwards[d] else steps - kept
            here = slice(first, first + kept)
            rows = slice(None, None, every)
            own = y[here, d].swapaxes(0, 1).reshape(-1, hidden)[rows].astype(np.float64)
            read = x[here].swapaxes(0, 1).reshape(-1, x.shape[-1])[rows].astype(np.float64)
            old = before[d][rows].astype(np.float64)
            good = np.isfinite(own).all(axis=1) & np.isfinite(read).all(axis=1)
            pair = self._squares(
                read[good] @ inner[0][d].T + inner[1][d], old[good] @ outer[0][d].T + outer[1][d],
                own[good], old[good], outer[0][d],
            )  # fmt: skip
            for which, squares in enumerate(pair):
                self.sums.add(squares.sum(axis=0), (which, d))
            found = int(good.sum())
        self.sums.count(found)

    def _maps(self) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """Weight and bias of the products with the input and with the states, by direction."""
        directions = self._states.value.directions
        found = []
        for layer in (self._layer, self._states):
            stage = layer.stage
            bias = np.zeros(stage.outputs) if stage.bias is None else stage.bias
            weight = stage.weight.reshape(directions, -1, stage.weight.shape[1])
            found.append((weight, bias.reshape(directions, -1)))
        return found[0], found[1]

    def _squares(
        self, a: Array, b: Array, state: Array, old: Array, weight: Array
    ) -> tuple[Array, Array]:
        """Squared derivatives ``(rows, gates * hidden)`` by the products with input and states.

        Args:
            a: product with the input.
            b: product with the states.
            state: the state of the step.
            old: that of the step before.
            weight: weight ``(gates * hidden, hidden)`` of the product with the states.
        """
        if self._layer.op == "RNN":
            slope = (state > 0) * 1.0 if self._relu else 1 - state**2
            return slope**2, slope**2
        if self._layer.op == "LSTM":
            both = _lstm(a + b, state) ** 2
            return both, both
        hidden = state.shape[1]
        z, r = (_sigmoid(a[:, k : k + hidden] + b[:, k : k + hidden]) for k in (0, hidden))
        last = slice(2 * hidden, None)
        inner = b[:, last] if self._before_reset else old
        if self._before_reset:
            n = np.tanh(a[:, last] + r * inner)
        else:  # the bias of the states is in b
            shift = b[:, last] - old @ weight[last].T
            n = np.tanh(a[:, last] + (r * old) @ weight[last].T + shift)
        by_n = (1 - z) * (1 - n**2)
        by_z = (old - n) * z * (1 - z)
        moved = by_n**2 if self._before_reset else by_n**2 @ weight[last] ** 2
        by_r = moved * (inner * r * (1 - r)) ** 2
        through = by_n * r if self._before_reset else by_n
        return (
            np.concatenate([by_z**2, by_r, by_n**2], axis=1),
            np.concatenate([by_z**2, by_r, through**2], axis=1),
        )

    def metrics(self) -> dict[str, GateMetric]:
        """Metrics of the products with the input and with the states, by name."""
        sums, rows = self.sums.total()
        if not rows:
            return {}
        inputs, states = sums / int(rows)
        found = {
            self._layer.name: GateMetric.of(inputs.reshape(1, -1)),
            self._states.name: GateMetric.of(states),
        }
        return {name: metric for name, metric in found.items() if metric is not None}


def _lstm(a: Array, state: Array) -> Array:
    """Derivatives ``(rows, 4 * hidden)`` of the state of an LSTM."""
    hidden = state.shape[1]
    i, o, f = (_sigmoid(a[:, k * hidden : (k + 1) * hidden]) for k in range(3))
    g = np.tanh(a[:, 3 * hidden :])
    squashed = np.clip(state / np.maximum(o, 1e-12), -1 + 1e-6, 1 - 1e-6)
    inward = o * (1 - squashed**2)
    kept = np.arctanh(squashed) - i * g
    parts = (inward * g * i * (1 - i), squashed * o * (1 - o), inward * kept * (1 - f),
             inward * i * (1 - g**2))  # fmt: skip
    return np.concatenate(parts, axis=1)


def _sigmoid(a: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * a)))
