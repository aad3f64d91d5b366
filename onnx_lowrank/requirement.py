"""What a compressed model must keep.

drop        points of labelled accuracy, or of the user's own metric, that may be lost
agreement   part of samples whose first class must stay what it was
snr         of all floating-point outputs against the original's, in dB
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from onnx_lowrank.errors import OptionError

__all__ = ["Metric", "Requirement", "Score"]

Array = npt.NDArray[Any]

#: the user's own: outputs by name, samples along axis 0; labels ``(samples,)`` or None; higher is
#: better
Metric = Callable[[Mapping[str, Array], Array | None], float]


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
            raise OptionError(f"{' and '.join(k for k, _ in asked)} at once; give one of them")
        if metric is not None and (not asked or asked[0][0] != "drop"):
            raise OptionError("a metric goes with the largest drop of it that is borne")
        if not asked:
            return None
        kind, bound = asked[0]
        largest = math.inf if kind == "snr" or metric is not None else 1.0
        if not (math.isfinite(bound) and 0 <= bound <= largest):
            wanted = "0 or more" if math.isinf(largest) else "a part between 0 and 1, 0.01 for 1 %"
            raise OptionError(f"{kind} of {bound:g}: give {wanted}")
        return cls(kind, bound, metric)

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
