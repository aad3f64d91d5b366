"""Step: the properties and methods that every step of a chain has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Step"]

Array = npt.NDArray[np.floating[Any]]


class Step(Protocol):
    """A linear map of a chain, in any form."""

    @property
    def role(self) -> str:
        """Word for the name of its node (``vertical``, ``core`` ...)."""

    @property
    def inputs(self) -> int:
        """Number of input channels."""

    @property
    def outputs(self) -> int:
        """Number of output channels."""

    @property
    def groups(self) -> int:
        """Number of independent groups of the map."""

    @property
    def bias(self) -> Array | None:
        """Bias ``(outputs,)``, or None."""

    @property
    def parameters(self) -> int:
        """Number of elements of all its floating-point constants."""

    @property
    def nodes(self) -> int:
        """Number of nodes that it is written as, approximately."""

    def macs(self, shape: Sequence[int]) -> int:
        """Number of multiply-accumulates for an input of ``shape``, over its whole batch."""

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""

    def dense(self, groups: int) -> Array:
        """The kernel ``(groups, N / groups, C / groups, *kernel)``, finer groups written out."""

    def with_bias(self, bias: Array | None) -> Step:
        """The same step with another bias."""

    def astype(self, dtype: npt.DTypeLike) -> Step:
        """The same step in another floating type."""
