"""What the channels of a model cost, and how many of them a group may be left with.

MACs are not time. A runtime with channel blocks computes each block whole, so under a budget on
MACs what convolutions make or read comes in blocks: 24 of 32 channels take the time of 32. Below
one block only half of it saves, and only where the next kernel is wider than 1 x 1. Finer numbers
come in where these do not reach the budget. A Gather takes time and no MACs; under such a budget it
counts as the MACs that could be done meanwhile.

Parameters and bytes know no blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.cost import layer_cost
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.analysis.time_model import BLOCK, MOVED, in_blocks
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.pruning.greedy import Ledger, Removable
from onnx_lowrank.pruning.prunable import Found, Prunable

__all__ = ["Costs"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: numbers below a size, and whether a kernel wider than 1 x 1 reads the channels
Grid = Callable[[int, bool], Iterable[int]]

#: most numbers of channels that a plan looks at in a group, where any number will do
_COUNTS = 128

#: a Gather of single numbers, in front of a dense layer, in those of whole planes
_SINGLE = 3


class Costs:
    """One model by one metric.

    Args:
        prepared: the model.
        found: what may go of it.
        metric: ``macs | params | size``.
        solve: whether the readers are solved again, and so given a bias.
    """

    def __init__(self, prepared: Prepared, found: Found, metric: str, solve: bool) -> None:
        self._prepared, self._found, self._metric, self._solve = prepared, found, metric, solve
        self._blocked = [
            metric == "macs" and in_blocks(layer.value.outline) for layer in prepared.layers
        ]

    def ledger(self) -> Ledger:
        """Of all layers, nothing removed."""
        layers = self._prepared.layers
        costs, biases, made = zip(*map(self._costs, layers), strict=True) if layers else ((),) * 3
        outputs, inputs = ([layer.shape[axis] for layer in layers] for axis in (0, 1))
        return Ledger(costs, outputs, inputs, biases, made)

    def grids(self, losses: Mapping[str, Array]) -> Iterator[list[Removable]]:
        """What may go, in numbers of channels that grow finer; one list where there are no blocks.

        Args:
            losses: of everything that may go, ``(size + 1,)`` by number of channels left.
        """
        for grid in (_in_blocks, _aligned, _any) if any(self._blocked) else (_any,):
            yield [
                Removable(
                    name, losses[name], self._counts(p, grid), p.sides,
                    self._found.excludes(p), self._toll(p),
                )
                for name, p in self._found.prunables.items()
            ]  # fmt: skip

    def _counts(self, prunable: Prunable, grid: Grid) -> Labels:
        """Numbers of channels that may be left, falling from all."""
        layers = self._prepared.layers
        blocked = [side for side in prunable.sides if self._blocked[side.layer]]
        if not blocked:
            return _falling(prunable.size, _any(prunable.size, False))
        wide = any(not s.outputs and max(layers[s.layer].shape[2:]) > 1 for s in blocked)
        return _falling(prunable.size, grid(prunable.size, wide))

    def _toll(self, prunable: Prunable) -> Array | None:
        """MACs in the time of a Gather, ``(size + 1,)`` by number of channels left."""
        if prunable.group is not None or self._metric != "macs":
            return None
        layer = prunable.readers[0][0]
        single = _SINGLE if layer.op in ("Gemm", "MatMul") else 1
        moved = single * MOVED * math.prod(self._prepared.shapes[layer.input])
        toll = moved * np.arange(prunable.size + 1) / prunable.size
        toll[-1] = 0.0
        return toll

    def _costs(self, layer: PlacedLayer) -> tuple[float, float, float]:
        """Of the weights, of the bias, and of the bias that solving gives a layer without."""
        cost = layer_cost(layer, self._prepared.shapes)
        if self._metric == "macs":
            return float(cost.macs), 0.0, 0.0
        whole = cost.parameters if self._metric == "params" else cost.bytes
        unit = whole / (layer.value.outline.parameters or 1)
        if layer.value.biased:
            return whole - unit * layer.shape[0], unit * layer.shape[0], 0.0
        means = self._prepared.moments[layer.name].mean is not None
        solved = means and self._solve and layer.sharers == 1
        # a recurrent node has a second bias, of its state
        return float(whole), 0.0, unit * layer.shape[0] * (1 + layer.value.recurrent) * solved


def _falling(size: int, fewer: Iterable[int]) -> Labels:
    return np.array([size, *sorted(fewer, reverse=True)], np.intp)


def _in_blocks(size: int, wide: bool) -> Iterable[int]:
    """Whole blocks; half a block, if a kernel wider than 1 x 1 reads it."""
    yield from range(BLOCK, size, BLOCK)
    if wide and size > BLOCK // 2:
        yield BLOCK // 2


def _aligned(size: int, wide: bool) -> Iterable[int]:
    return aligned_ranks(size - 1)


def _any(size: int, wide: bool) -> Iterable[int]:
    return range(1, size, max(size // _COUNTS, 1))
