"""Geometry of the product of a recurrent node with its own states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import LinearGeometry

__all__ = ["StateGeometry"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StateGeometry(LinearGeometry):
    """States of the step before, as a recurrent node reads them; each direction is a group.

    The tensor is the node's output ``Y``: ``(steps, directions, batch, hidden)``, or
    ``(batch, steps, directions, hidden)`` where the batch comes first. A direction that runs
    backwards reads the state of the step behind. At the first step a node reads its initial state:
    zeros, or numbers that ``Y`` does not hold; that step is then left out.

    Attributes:
        backwards: for each direction, whether it runs from the last step to the first.
        batch_first: whether the first axis is the batch.
        from_zeros: whether the initial states are zeros.
    """

    backwards: tuple[bool, ...] = (False,)
    batch_first: bool = False
    from_zeros: bool = True

    def positions(self, shape: Sequence[int]) -> int:
        """Number of steps that are read of each sample."""
        return max(shape[1 if self.batch_first else 0] - (not self.from_zeros), 0)

    def rows(self, shape: Sequence[int]) -> int:
        """Number of steps of all samples in a ``Y`` of ``shape``."""
        return math.prod(shape[:2] if self.batch_first else (shape[0], shape[2]))

    def output_shape(self, shape: Sequence[int], outputs: int) -> tuple[int, ...]:
        """Shape of the responses to a ``Y`` of ``shape``, which no tensor holds."""
        return (*shape[:-1], outputs // self.groups)

    def patches(self, x: Array, index: npt.NDArray[np.intp] | None = None) -> Array:
        """States ``(directions, rows, hidden)`` that the weight is multiplied with."""
        turned = np.moveaxis(x, 2, 0) if self.batch_first else np.moveaxis(x, (1, 2), (0, 1))
        # (directions, batch, steps, hidden)
        found = []
        for states, backwards in zip(turned, self.backwards, strict=True):
            before = states[:, 1:] if backwards else states[:, :-1]
            if self.from_zeros and states.shape[1]:
                start = np.zeros_like(states[:, :1])
                before = np.concatenate([before, start] if backwards else [start, before], axis=1)
            if index is not None:
                before = before[:, index]
            found.append(before.reshape(-1, x.shape[-1]))
        return np.stack(found)

    def responses(self, y: Array, index: npt.NDArray[np.intp] | None = None) -> Array:
        """Rows of responses, which stay inside the node: no tensor holds them."""
        raise NotImplementedError("the products of a recurrent node with its states are no tensor")
