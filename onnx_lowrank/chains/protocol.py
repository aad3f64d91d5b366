"""What every step of a chain tells of itself, and can be asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Step"]

Array = npt.NDArray[np.floating[Any]]


class Step(Protocol):
    """One linear map of a chain, in whatever form it is written."""

    @property
    def role(self) -> str:
        """A word for the name of its node (``vertical``, ``core`` ...)."""

    @property
    def inputs(self) -> int:
        """Number of input channels."""

    @property
    def outputs(self) -> int:
        """Number of output channels."""

    @property
    def groups(self) -> int:
        """Into how many groups the map falls apart."""

    @property
    def bias(self) -> Array | None:
        """``(outputs,)``, or None."""

    @property
    def parameters(self) -> int:
        """Elements of all its floating-point constants."""

    @property
    def nodes(self) -> int:
        """Nodes that it is written as, about."""

    def macs(self, shape: Sequence[int]) -> int:
        """Multiply-accumulates for an input of ``shape``, over its whole batch."""

    def output_shape(self, shape: Sequence[int]) -> Sequence[int]:
        """Shape of the output for an input of ``shape``."""

    def dense(self, groups: int) -> Array:
        """The kernel ``(groups, N / groups, C / groups, *kernel)``, finer groups written out."""

    def with_bias(self, bias: Array | None) -> Step:
        """The same step with another bias."""

    def astype(self, dtype: npt.DTypeLike) -> Step:
        """The same step in another floating type."""
