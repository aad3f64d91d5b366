"""Requirements on a compressed model.

loss        largest loss by the judge: 0 is the original, 1 tells no sample from another
kept        smallest part of the answers that stay, of the output that keeps least
drop        largest loss of labelled accuracy (a fraction), or of the user's own metric
agreement   smallest part of samples whose first class stays the same
snr         smallest signal-to-noise ratio of all floating-point outputs against the original's, dB
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import fraction, percent

__all__ = [
    "BY_JUDGE",
    "GUARDED",
    "NEARLY_ALL",
    "Metric",
    "Requirement",
    "Score",
    "check_bound",
    "largest_loss",
    "read_bound",
]

#: A metric of the user: a function of ``(outputs, labels)``, and of ``inputs`` where it has such a
#: parameter. Outputs and inputs are given by name with samples along axis 0; labels are
#: ``(samples, ...)`` or None. Higher values are better.
Metric = Callable[..., float]


#: requirements that the judge scores
BY_JUDGE = frozenset({"agreement", "kept", "loss"})
#: part of the answers that a result must keep where no more is asked for, and part that the
#: smallest model keeps where no target is given
GUARDED, NEARLY_ALL = 0.9, 0.95

_NAMES = {
    "drop": "max_drop", "agreement": "min_agreement", "snr": "min_snr", "loss": "max_loss",
    "kept": "min_kept",
}  # fmt: skip
_UNITS = {"drop": " points", "agreement": " %", "snr": " dB", "loss": " %", "kept": " %"}
#: requirements that a value must not exceed
_UPPER = frozenset({"drop", "loss"})


@dataclass(frozen=True)
class Requirement:
    """A bound on what may be lost.

    Attributes:
        kind: ``loss | kept | drop | agreement | snr``.
        bound: largest loss, smallest part kept, largest drop (in units of the metric where there
            is one) or smallest agreement as a fraction, or smallest SNR in dB.
        metric: metric to take in place of labelled accuracy, for ``drop``.
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
        max_loss: float | None = None,
    ) -> Requirement | None:
        """Make the requirement that the options ask for; None where they ask for none.

        Raises:
            OptionError: two bounds are given, a bound is out of range, or a metric is given
                without a drop.
        """
        asked = [
            (kind, bound)
            for kind, bound in (
                ("drop", max_drop), ("agreement", min_agreement), ("snr", min_snr),
                ("loss", max_loss),
            )
            if bound is not None
        ]  # fmt: skip
        if len(asked) > 1:
            names = " and ".join(_NAMES[kind] for kind, _ in asked)
            raise OptionError(f"{names} at once; give one of them")
        if metric is not None and (not asked or asked[0][0] != "drop"):
            raise OptionError("a metric needs max_drop too: give the largest drop of it allowed")
        if not asked:
            return None
        kind, bound = asked[0]
        check_bound(kind, bound, metric is not None)
        return cls(kind, bound, metric)

    @property
    def understood(self) -> str:
        """The bound in words with its unit, as the first line of a report."""
        if self.kind == "snr":
            return f"least SNR asked for: {self.bound:g} dB"
        if self.kind == "agreement":
            return f"least agreement of the first class asked for: {percent(self.bound)}"
        if self.kind == "kept":
            return f"least part of the answers that must stay: {percent(self.bound)}"
        if self.kind == "loss":
            return f"largest loss by the judge allowed: {percent(self.bound)}"
        if self.metric is not None:
            return f"largest loss of the metric allowed: {self.bound:g}, in units of the metric"
        return largest_loss(self.bound)

    def holds(self, value: float) -> bool:
        """Whether a score is within the bound."""
        if self.kind in _UPPER:
            return value <= self.bound + 1e-12
        return value >= self.bound - 1e-12

    @property
    def scale(self) -> float:
        """Factor from a value to the number that is shown."""
        return 1.0 if self.kind == "snr" or self.metric is not None else 100.0

    @property
    def unit(self) -> str:
        """Unit of the number that is shown."""
        return "" if self.metric is not None else _UNITS[self.kind]

    def __str__(self) -> str:
        if self.kind == "snr":
            return f"an SNR of {self.bound:g} dB at least"
        if self.kind == "agreement":
            return f"the same first class for {self.bound:.2%} at least"
        if self.kind == "kept":
            return f"{self.bound:.2%} of the answers"
        if self.kind == "loss":
            return f"a loss of {self.bound:.2%} at most"
        unit = f"{self.bound:g} of the metric" if self.metric else f"{self.bound * 100:g} points"
        return f"a drop of {unit} at most"


@dataclass(frozen=True)
class Score:
    """Score of a model on some samples, with its 95 % interval.

    Attributes:
        value: drop, agreement (fractions) or SNR (dB).
        low: lower end of the interval.
        high: upper end of the interval.
        samples: number of samples.
        expected: whether a drop of accuracy was estimated by probabilities, not counted.
    """

    value: float
    low: float
    high: float
    samples: int
    expected: bool = False

    def text(self, requirement: Requirement) -> str:
        """The value with its interval, for people."""
        if self.low == math.inf:
            return f"equal outputs on {self.samples} samples"
        low, high = (requirement.scale * x for x in (self.low, self.high))
        interval = f"[{low:.2f}, {high:.2f}] on {self.samples} samples"
        return f"{self.brief(requirement)} {interval}"

    def brief(self, requirement: Requirement) -> str:
        """The value alone, for people."""
        how = " expected" if self.expected else ""
        return f"{requirement.scale * self.value:.2f}{requirement.unit}{how}"


def check_bound(kind: str, bound: float, own_metric: bool = False) -> None:
    """Refuse a bound that is out of range, or that every model would keep.

    Args:
        kind: ``loss | kept | drop | agreement | snr``.
        bound: the bound, as in :class:`Requirement`.
        own_metric: whether the drop is counted in the units of the user's metric.

    Raises:
        OptionError: the bound is out of range.
    """
    name = f"{_NAMES[kind]}={bound:g}"
    if not math.isfinite(bound) or bound < 0:
        raise OptionError(f"{name}: give a finite number, 0 or more")
    if kind == "drop" and not own_metric and bound >= 1:
        raise OptionError(
            f"{name} would allow a loss of {100 * bound:g} %, which every model keeps to; give a "
            "fraction below 1, as 0.01 for 1 %"
        )
    if kind in ("agreement", "kept") and not 0 < bound <= 1:
        raise OptionError(
            f"{name}: give a fraction above 0 (which every model reaches) and at most 1, as "
            "0.99 for 99 %"
        )


def largest_loss(bound: float, *, labelled: bool = True) -> str:
    """Say a bound on the loss in words: as a percentage, with the number understood.

    Args:
        bound: largest loss, as a fraction.
        labelled: whether the loss is one of labelled accuracy; else it is the part of samples
            whose first class changes.
    """
    what = "accuracy loss" if labelled else "part of changed classes"
    return f"largest {what} allowed: {percent(bound)}"


def read_bound(kind: str, given: float | str | None, own_metric: bool = False) -> float | None:
    """The bound that a number or a text stands for, not yet checked.

    Args:
        kind: ``loss | kept | drop | agreement | snr``.
        given: a number, ``1%``, ``0.01``, or ``30dB``; None for no bound.
        own_metric: whether a drop is one of the user's metric, in whatever units that has.

    Raises:
        OptionError: the text cannot be read as that.
    """
    if given is None or not isinstance(given, str):
        return given
    name = "--" + _NAMES[kind].replace("_", "-")
    if kind == "snr":
        number = given[:-2] if given.lower().endswith("db") else given
        return _number(number, f"{name} {given!r}; write 30dB or 30")
    if own_metric:
        part = given.endswith("%")
        value = _number(
            given[:-1] if part else given,
            f"{name} {given!r}; write a number in units of the metric",
        )
        return value / 100 if part else value
    try:
        return fraction(given, bare_one=False)
    except ValueError as error:
        raise OptionError(f"{name} {error}") from None


def _number(text: str, message: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(message) from None
