"""How many components to keep: one small language for all methods.

    fixed=32       that many
    ratio=0.5      as many as cost half of the whole, at most
    energy=0.95    as few as keep that part of the sum of the squared singular values
    error=0.01     as few as leave that relative error, at most
    evbmf          as many as rise above the noise

The first two look at costs, ``energy`` and ``evbmf`` at a falling spectrum, ``error`` at an error
curve. Ranks are chosen from a rising grid, so that they come out as runtimes like them.

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
    """The smallest rank, 1 at least, that keeps ``part`` of the sum of squares.

    Args:
        values: singular values, falling.
        part: between 0 and 1. At 1 what float64 cannot tell from zero is dropped.
    """
    kept = np.concatenate([[0.0], np.cumsum(np.asarray(values, np.float64) ** 2)])
    wanted = part * kept[-1] - len(kept) * np.finfo(np.float64).eps * kept[-1]
    return max(int(np.argmax(kept >= wanted)), 1)


def evbmf_rank(values: Array, shape: tuple[int, int]) -> int:
    """Components above the noise, 1 at least: see :mod:`onnx_lowrank.linalg.evbmf`.

    Args:
        values: singular values.
        shape: of the matrix that they are of.
    """
    return max(evbmf(values, shape).rank, 1)


def ratio_rank(cost: Callable[[int], float], limit: float, ranks: Iterable[int]) -> int | None:
    """The last of rising ``ranks`` that costs ``limit`` at most; None where none does."""
    return max((r for r in ranks if cost(r) <= limit), default=None)


def error_rank(error: Callable[[int], float], bound: float, ranks: Iterable[int]) -> int | None:
    """The first of rising ``ranks`` whose error is ``bound`` at most; None where none is."""
    return next((r for r in ranks if error(r) <= bound), None)


@dataclass(frozen=True)
class RankRule:
    """One rule, as in the module's table.

    Attributes:
        kind: its name.
        value: its number; 0 for ``evbmf``.

    Raises:
        ValueError: a name that is none of them, or a number out of range.
    """

    kind: str
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"rank rule {self.kind!r} is none of {', '.join(_KINDS)}")
        if self.kind == "fixed" and not (self.value >= 1 and float(self.value).is_integer()):
            raise ValueError(f"fixed={self.value:g}: a whole number of 1 at least is wanted")
        if self.kind in ("ratio", "energy") and not 0 < self.value <= 1:
            raise ValueError(f"{self.kind}={self.value:g}: a number in (0, 1] is wanted")
        if self.kind == "error" and not 0 <= self.value <= 1:
            raise ValueError(f"error={self.value:g}: a number in [0, 1] is wanted")

    @classmethod
    def parse(cls, text: str) -> RankRule:
        """The rule that ``text`` spells.

        Raises:
            ValueError: no rule, or a number missing, too many or out of range.
        """
        kind, equals, number = (t.strip() for t in text.partition("="))
        if kind not in _KINDS or (kind == "evbmf") == bool(equals):
            raise ValueError(
                f"rank rule {text!r} is none of fixed=32, ratio=0.5, energy=0.95, error=0.01, evbmf"
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
                raise ValueError(f"rank rule {text!r}: {number!r} is no number") from None
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
        """The rank of the grid that the rule asks for; None where there is none.

        ``fixed``, ``energy`` and ``evbmf`` take the first rank of the grid that is not below what
        they ask for.

        Args:
            ranks: the grid, rising.
            values: singular values, falling, for ``energy`` and ``evbmf``.
            shape: of the matrix that they are of, for ``evbmf``.
            error: relative error of a rank, for ``error``.
            cost: of a rank as a part of the whole's, for ``ratio``.

        Raises:
            ValueError: what the rule needs was not given.
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
