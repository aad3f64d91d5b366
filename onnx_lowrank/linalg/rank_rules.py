"""Rules for ranks, the same for all methods.

    fixed=32       the rank itself
    ratio=0.5      the largest rank that costs at most this part of the whole
    energy=0.95    the smallest rank that keeps this part of the sum of squared singular values
    error=0.01     the smallest rank with at most this relative error
    evbmf          the number of components above the noise

``ratio`` needs costs, ``energy`` and ``evbmf`` a falling spectrum, ``error`` an error curve. Ranks
are chosen from a rising grid, so that runtimes are fast with them.

Reference:
    Lin et al. 2018, Holistic CNN compression via low-rank decomposition with knowledge transfer
    (energy); Nakajima et al. 2013 (evbmf).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.evbmf import evbmf
from onnx_lowrank.option_values import fraction

__all__ = ["RankRule", "energy_rank", "error_rank", "evbmf_rank", "ratio_rank"]

Array = npt.NDArray[np.floating[Any]]

_T = TypeVar("_T")

_KINDS = ("fixed", "ratio", "energy", "error", "evbmf")


def energy_rank(values: Array, part: float) -> int:
    """The smallest rank (1 or more) that keeps ``part`` of the sum of squares.

    Args:
        values: singular values, falling.
        part: part to keep, between 0 and 1; at 1 values below the rounding of float64 are dropped.
    """
    kept = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64) ** 2)])
    wanted = part * kept[-1] - len(kept) * np.finfo(np.float64).eps * kept[-1]
    return max(int(np.argmax(kept >= wanted)), 1)


def evbmf_rank(values: Array, shape: tuple[int, int]) -> int:
    """Number of components above the noise (1 or more), by :mod:`onnx_lowrank.linalg.evbmf`.

    Args:
        values: singular values of a matrix.
        shape: shape of the matrix.
    """
    return max(evbmf(values, shape).rank, 1)


def ratio_rank(cost: Callable[[int], float], limit: float, ranks: Iterable[int]) -> int | None:
    """The largest of ``ranks`` that costs at most ``limit``; None where none does."""
    return max((r for r in ranks if cost(r) <= limit), default=None)


def error_rank(error: Callable[[int], float], bound: float, ranks: Iterable[int]) -> int | None:
    """The first of rising ``ranks`` with an error of at most ``bound``; None without one."""
    return next((r for r in ranks if error(r) <= bound), None)


@dataclass(frozen=True)
class RankRule:
    """A rule of the module's table.

    Attributes:
        kind: name of the rule.
        value: number of the rule; 0 for ``evbmf``.

    Raises:
        ValueError: the name is unknown, or the number is out of range.
    """

    kind: str
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"rank rule {self.kind!r}; it should be one of {', '.join(_KINDS)}")
        if self.kind == "fixed" and not (self.value >= 1 and float(self.value).is_integer()):
            raise ValueError(f"fixed={self.value:g}; it should be a whole number, 1 or more")
        if self.kind in ("ratio", "energy") and not 0 < self.value <= 1:
            raise ValueError(f"{self.kind}={self.value:g}; it should be above 0 and at most 1")
        if self.kind == "error" and not 0 <= self.value <= 1:
            raise ValueError(f"error={self.value:g}; it should be between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> RankRule:
        """Read a rule from text.

        Raises:
            ValueError: the text is not a rule, or its number is missing or out of range.
        """
        kind, equals, number = (t.strip() for t in text.partition("="))
        if kind not in _KINDS or (kind == "evbmf") == bool(equals):
            raise ValueError(
                f"rank rule {text!r}; it should be one of fixed=32, ratio=0.5, energy=0.95, "
                "error=0.01, evbmf"
            )
        value = 0.0
        if equals and kind != "fixed":
            try:
                value = fraction(number)
            except ValueError as error:
                raise ValueError(f"rank rule {text!r}: {error}") from None
        elif equals:
            try:
                value = float(number)
            except ValueError:
                raise ValueError(f"rank rule {text!r}: {number!r} is not a number") from None
        return cls(kind, value)

    def __str__(self) -> str:
        number = int(self.value) if float(self.value).is_integer() else self.value
        return self.kind if self.kind == "evbmf" else f"{self.kind}={number}"

    def choose(
        self,
        ranks: Iterable[int],
        *,
        values: Array | None = None,
        shape: tuple[int, int] | None = None,
        error: Callable[[int], float] | None = None,
        cost: Callable[[int], float] | None = None,
    ) -> int | None:
        """Choose a rank of a grid by the rule; None where none fits.

        ``fixed``, ``energy`` and ``evbmf`` take the first rank of the grid that is not below the
        rank that they give.

        Args:
            ranks: ranks of the grid, rising.
            values: singular values, falling, for ``energy`` and ``evbmf``.
            shape: shape of the matrix of these values, for ``evbmf``.
            error: returns the relative error of a rank, for ``error``.
            cost: returns the cost of a rank as a part of the whole, for ``ratio``.

        Raises:
            ValueError: an argument that the rule needs is missing.
        """
        if self.kind == "ratio":
            return ratio_rank(self._given(cost, "cost"), self.value, ranks)
        if self.kind == "error":
            return error_rank(self._given(error, "error"), self.value, ranks)
        if self.kind == "fixed":
            wanted = int(self.value)
        elif self.kind == "energy":
            wanted = energy_rank(self._given(values, "values"), self.value)
        else:
            wanted = evbmf_rank(self._given(values, "values"), self._given(shape, "shape"))
        return next((r for r in ranks if r >= wanted), None)

    def _given(self, thing: _T | None, name: str) -> _T:
        if thing is None:
            raise ValueError(f"rank rule {self} needs {name}=")
        return thing
