"""What a compressed model must keep.

drop        points of labelled accuracy, or of the user's own metric, that may be lost
agreement   part of samples whose first class must stay what it was
snr         of all floating-point outputs against the original's, in dB
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import percent

__all__ = ["Metric", "Requirement", "Score", "check_bound", "largest_loss"]

#: the user's own, of ``(outputs, labels)``, and of ``inputs`` where it has such a parameter:
#: outputs and inputs by name, samples along axis 0; labels ``(samples, ...)`` or None; higher is
#: better
Metric = Callable[..., float]


_NAMES = {"drop": "max_drop", "agreement": "min_agreement", "snr": "min_snr"}
_UNITS = {"drop": " points", "agreement": " %", "snr": " dB"}


@dataclass(frozen=True)
class Requirement:
    """A bound on what may be lost.

    Attributes:
        kind: ``drop | agreement | snr``.
        bound: largest drop, least agreement, least dB.
        metric: in place of labelled accuracy, for ``drop``.
    """

    kind: str
    bound: float
    metric: Metric | None = None

    @classmethod
    def of(
        cls,
        max_drop: float | None,
        min_agreement: float | None,
        min_snr: float | None,
        metric: Metric | None = None,
    ) -> Requirement | None:
        """The one that is asked for; None where none is.

        Raises:
            OptionError: more than one, a bound out of range, or a metric without a drop.
        """
        asked = [
            (kind, bound)
            for kind, bound in (
                ("drop", max_drop), ("agreement", min_agreement), ("snr", min_snr)
            )
            if bound is not None
        ]  # fmt: skip
        if len(asked) > 1:
            names = " and ".join(_NAMES[kind] for kind, _ in asked)
            raise OptionError(f"{names} at once; give one of them")
        if metric is not None and (not asked or asked[0][0] != "drop"):
            raise OptionError("a metric needs max_drop too, the largest drop of it that is borne")
        if not asked:
            return None
        kind, bound = asked[0]
        check_bound(kind, bound, metric is not None)
        return cls(kind, bound, metric)

    @property
    def understood(self) -> str:
        """The bound in words, with its unit: what a report says first."""
        if self.kind == "snr":
            return f"least SNR asked for: {self.bound:g} dB"
        if self.kind == "agreement":
            return f"least agreement of the first class asked for: {percent(self.bound)}"
        if self.metric is not None:
            return f"largest loss of the metric allowed: {self.bound:g}, in units of the metric"
        return largest_loss(self.bound)

    def holds(self, value: float) -> bool:
        """Whether a score is within the bound."""
        return value <= self.bound + 1e-12 if self.kind == "drop" else value >= self.bound - 1e-12

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be read."""
        return 1.0 if self.kind == "snr" or self.metric is not None else 100.0

    @property
    def unit(self) -> str:
        """What it is in then."""
        return "" if self.metric is not None else _UNITS[self.kind]

    def __str__(self) -> str:
        if self.kind == "snr":
            return f"an SNR of {self.bound:g} dB at least"
        if self.kind == "agreement":
            return f"the same first class for {self.bound:.2%} at least"
        unit = f"{self.bound:g} of the metric" if self.metric else f"{self.bound * 100:g} points"
        return f"a drop of {unit} at most"


@dataclass(frozen=True)
class Score:
    """What a model reaches on some samples, with its interval.

    Attributes:
        expected: by probabilities, not counted.
    """

    value: float
    low: float
    high: float
    samples: int
    expected: bool = False

    def text(self, requirement: Requirement) -> str:
        """For people."""
        if self.low == math.inf:
            return f"equal outputs on {self.samples} samples"
        low, high = (requirement.scale * x for x in (self.low, self.high))
        interval = f"[{low:.2f}, {high:.2f}] on {self.samples} samples"
        return f"{self.brief(requirement)} {interval}"

    def brief(self, requirement: Requirement) -> str:
        """The value alone."""
        how = " expected" if self.expected else ""
        return f"{requirement.scale * self.value:.2f}{requirement.unit}{how}"


def check_bound(kind: str, bound: float, own_metric: bool = False) -> None:
    """Refuse a bound that is out of range, or that every model would keep.

    Args:
        kind: ``drop | agreement | snr``.
        bound: as of :class:`Requirement`.
        own_metric: whether a drop is one of the user's metric, in whatever units that has.

    Raises:
        OptionError: as said.
    """
    name = f"{_NAMES[kind]}={bound:g}"
    if not math.isfinite(bound) or bound < 0:
        raise OptionError(f"{name}: give a finite number, 0 or more")
    if kind == "drop" and not own_metric and bound >= 1:
        raise OptionError(
            f"{name} would allow a loss of {100 * bound:g} %, which every model keeps to; give a "
            "fraction below 1, as 0.01 for 1 %"
        )
    if kind == "agreement" and not 0 < bound <= 1:
        raise OptionError(
            f"{name}: give a fraction above 0, which every model reaches, and of 1 at most, as "
            "0.99 for 99 %"
        )


def largest_loss(bound: float, *, labelled: bool = True) -> str:
    """A bound on what may be lost in words: as a percentage, and as the number understood.

    Args:
        bound: a fraction.
        labelled: whether accuracy is counted; else it is changes of the first class.
    """
    what = "accuracy loss" if labelled else "part of changed classes"
    return f"largest {what} allowed: {percent(bound)}"
