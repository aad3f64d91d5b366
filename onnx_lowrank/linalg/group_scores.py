"""Plain rankings of groups of inputs, which need no solution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.groups import Groups

__all__ = ["energy_scores", "random_scores"]

Array = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.intp]


def energy_scores(R: Array, widths: Sequence[int] | Indices) -> Array:
    """Mean square ``(G,)`` of each group's inputs, from the diagonal of ``R (d, d)``."""
    groups = Groups.of(widths)
    means: Array = groups.sums(np.diag(R).astype(np.float64)) / groups.widths[0]
    return means


def random_scores(widths: Sequence[int] | Indices, seed: int) -> Array:
    """Random numbers ``(G,)``, as a ranking to compare others with."""
    return np.random.default_rng(seed).random(Groups.of(widths).count)
