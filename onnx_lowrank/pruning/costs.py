"""Costs of the channels of a model, and the numbers of channels that a group may be left with.

MACs are not time. A runtime with channel blocks computes each block whole: 24 of 32 channels take
the time of 32. So under a budget on MACs convolutions make or read channels in whole blocks. Below
one block only half a block saves time, and only where the next kernel is wider than 1 x 1. Finer
numbers are used where these do not reach the budget. Between dense layers numbers of features are
multiples of 8, as ranks are, since a product is computed in tiles. A Gather takes time and no MACs;
under such a budget it counts as the MACs that could be done meanwhile.

For parameters and bytes blocks do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.cost import layer_cost
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.analysis.time_model import BLOCK, MOVED, in_blocks
from onnx_lowrank.layers import PlacedLayer
from onnx_lowrank.passkit.rank_grid import aligned_ranks
from onnx_lowrank.pruning.greedy import Ledger, Removable, Side
from onnx_lowrank.pruning.prunable import Found, Product, Prunable

__all__ = ["TILE", "Costs"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: features of a dense layer that products are computed for at a time
TILE = 8

#: largest number of counts that are tried in a group, where any number of channels is allowed
_COUNTS = 128

#: time of gathering a number in front of a dense layer, as a multiple of that in a whole plane
_SINGLE = 3


class Costs:
    """Costs of the channels of one model, in one unit.

    Args:
        prepared: the model.
        found: channels of it that may go.
        metric: unit of costs: ``macs | params | size``.
        solve: whether the readers are solved again, and so given a bias.
    """

    def __init__(self, prepared: Prepared, found: Found, metric: str, solve: bool) -> None:
        self._prepared, self._found, self._metric, self._solve = prepared, found, metric, solve
        self._blocked = [
            metric == "macs" and in_blocks(layer.value.outline) for layer in prepared.products
        ]
        self._blocked += [False] * len(found.products)

    def ledger(self) -> Ledger:
        """Ledger of all layers with all their channels."""
        layers = self._prepared.products
        costs, biases, made = zip(*map(self._costs, layers), strict=True) if layers else ((),) * 3
        outputs, inputs = ([layer.shape[axis] for layer in layers] for axis in (0, 1))
        products = self._found.products
        none = [0.0] * len(products)
        widths = [p.width for p in products]
        return Ledger(
            [*costs, *(self.of_product(p) for p in products)], [*outputs, *widths],
            [*inputs, *widths], [*biases, *none], [*made, *none],
        )  # fmt: skip

    def of_product(self, product: Product) -> float:
        """Cost of a product of two activations."""
        return float(product.macs) if self._metric == "macs" else 0.0

    def grids(self, losses: Mapping[str, Array]) -> Iterator[list[Removable]]:
        """Yield the groups with the numbers of channels they may be left with, ever finer.

        There is one list only under budgets that blocks do not matter for.

        Args:
            losses: losses ``(size + 1,)`` by number of channels left, for each prunable.
        """
        counts = self._coarse, self._aligned, self._finest
        for counted in counts if self._metric == "macs" else counts[-1:]:
            yield [
                Removable(
                    name, losses[name], counted(p), p.sides,
                    self._found.excludes(p), self._uncounted_cost(p),
                )
                for name, p in self._found.prunables.items()
            ]  # fmt: skip

    def _coarse(self, prunable: Prunable) -> Labels:
        """Numbers of channels that fill whole blocks or tiles, falling from all of them."""
        if prunable.pairs:
            return self._of_heads(prunable)
        layers, size = self._prepared.products, prunable.size
        blocked = [side for side in prunable.sides if self._blocked[side.layer]]
        if not blocked:
            dense = [side for side in prunable.sides if side.layer < len(layers)]
            return _falling(size, _in_tiles(size, dense))
        wide = any(not s.outputs and max(layers[s.layer].shape[2:]) > 1 for s in blocked)
        return _falling(size, _in_blocks(size, wide))

    def _aligned(self, prunable: Prunable) -> Labels:
        """The numbers of channels that ranks may have too."""
        if prunable.pairs:
            return self._of_heads(prunable)
        if any(self._blocked[side.layer] for side in prunable.sides):
            return _falling(prunable.size, aligned_ranks(prunable.size - 1))
        return self._coarse(prunable)

    def _finest(self, prunable: Prunable) -> Labels:
        """All numbers of channels; some of very many. Heads keep those that runtimes like."""
        if prunable.pairs:
            return self._of_heads(prunable)
        return _falling(prunable.size, range(1, prunable.size, max(prunable.size // _COUNTS, 1)))

    def _of_heads(self, prunable: Prunable) -> Labels:
        """Widths of heads: ranks that runtimes like, since each head is a product of its own."""
        return _falling(prunable.size, aligned_ranks(prunable.size - 1))

    def _uncounted_cost(self, prunable: Prunable) -> Array | None:
        """MACs in the time of a Gather, ``(size + 1,)`` by number of channels left; else None."""
        if prunable.group is not None or self._metric != "macs":
            return None
        layer = prunable.readers[0][0]
        single = _SINGLE if layer.op in ("Gemm", "MatMul") else 1
        moved = single * MOVED * math.prod(self._prepared.shapes[layer.input])
        cost = moved * np.arange(prunable.size + 1) / prunable.size
        cost[-1] = 0.0
        return cost

    def _costs(self, layer: PlacedLayer) -> tuple[float, float, float]:
        """Costs of a layer's weights, its bias, and the bias that solving gives it otherwise."""
        cost = layer_cost(layer, self._prepared.shapes)
        if self._metric == "macs":
            return float(cost.macs), 0.0, 0.0
        whole = cost.of(self._metric)
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


def _in_tiles(size: int, sides: Sequence[Side]) -> Iterable[int]:
    """Numbers of channels with which every dense layer has a multiple of :data:`TILE`; half a tile.

    A channel may stand for several rows of a layer.
    """
    step = max((TILE // math.gcd(TILE, side.units) for side in sides), default=TILE)
    yield from range(step, size, step)
    if 1 < step // 2 < size:
        yield step // 2
