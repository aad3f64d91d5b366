"""What happened on the way to a model that its report should tell.

Each is a value that other code may ask for by its type; :mod:`onnx_lowrank.report.wording` has the
words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "AlreadyKept",
    "ChainsAreSlower",
    "ChainsTakenBack",
    "GroupsWeighed",
    "HeadsWhole",
    "InInt8",
    "LatencyOfPlan",
    "LatencyOfPruning",
    "LeftOut",
    "NearEnough",
    "Note",
    "OtherData",
    "Quickest",
    "Remark",
    "Resumed",
    "Round",
    "SearchResult",
    "SharesTried",
    "SizeNotReached",
    "SomeCompared",
    "TimeBesideProducts",
    "WeightsAsInputs",
]


@dataclass(frozen=True)
class Remark:
    """What a source of samples said, in its own words."""

    text: str


@dataclass(frozen=True)
class Resumed:
    """Moments that an interrupted job had collected were not collected again."""


@dataclass(frozen=True)
class WeightsAsInputs:
    """All initializers were listed as inputs too, and were taken for constants.

    Attributes:
        initializers: number of them.
    """

    initializers: int


@dataclass(frozen=True)
class InInt8:
    """What ONNX Runtime's quantizer made of a result.

    Attributes:
        mode: ``dynamic | static``.
        layers: number of layers in int8.
        left: names of those that the judge could not bear in int8.
        bits: of the weights, 8 or 7.
        every_kind: whether operators without weights are in int8 too.
        runs: number of models that were quantized and judged.
        remarks: what had to be changed in the model, in sentences.
    """

    mode: str
    layers: int
    left: tuple[str, ...]
    bits: int
    every_kind: bool
    runs: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class OtherData:
    """A plan was carried out on other calibration data than it was made on."""


@dataclass(frozen=True)
class SizeNotReached:
    """A target on size was missed by what names and nodes take.

    Attributes:
        asked: the target as the user gave it.
        bytes: that are left.
        left: part of the original's bytes that they are.
    """

    asked: str
    bytes: int
    left: float


@dataclass(frozen=True)
class AlreadyKept:
    """An amount that the original does not exceed.

    Attributes:
        asked: the target as the user gave it.
        original: the amount that the original has, in the same form.
    """

    asked: str
    original: str


@dataclass(frozen=True)
class LatencyOfPlan:
    """The time of a plan, predicted and measured, as parts of the original's.

    Attributes:
        batch: samples of an inference.
        predicted: by the times of its chains.
        measured: of its whole model.
        coverage: how the times of chains came about.
        again: whether another plan was made by the measured time.
    """

    batch: int
    predicted: float
    measured: float
    coverage: str
    again: bool


@dataclass(frozen=True)
class LatencyOfPruning:
    """The time of a plan that only prunes, as a part of the original's.

    Attributes:
        batch: samples of an inference.
        measured: of its whole model.
    """

    batch: int
    measured: float


@dataclass(frozen=True)
class Round:
    """What became of a plan that was made again with measured sensitivities.

    Attributes:
        number: of the round, from 1 on.
        outcome: ``same | no better | kept | dropped``; only the last two were built.
        before: the judge's loss of the plan at hand on held-out samples.
        after: the same of the new one.
        samples: that the losses stand on.
    """

    number: int
    outcome: str
    before: float = 0.0
    after: float = 0.0
    samples: int = 0


@dataclass(frozen=True)
class SharesTried:
    """The judge's losses of plans in which pruning makes several shares of the saving.

    Attributes:
        share: that was taken.
        losses: shares that were tried, rising, and the losses there on held-out samples.
        samples: that the losses stand on.
    """

    share: float
    losses: tuple[tuple[float, float], ...]
    samples: int


@dataclass(frozen=True)
class SomeCompared:
    """Not all samples were compared, as that takes long.

    Attributes:
        samples: number of those that were.
        given: number of those that did not calibrate.
    """

    samples: int
    given: int


@dataclass(frozen=True)
class NearEnough:
    """The judge's loss of the first plan, too small to look for a better one.

    Attributes:
        loss: on held-out samples.
        samples: that it stands on.
    """

    loss: float
    samples: int


@dataclass(frozen=True)
class Quickest:
    """Plans by the time that they are foreseen to take, as the first saves next to none.

    Attributes:
        share: part of the saving that taking channels out makes in the plan that is taken.
        times: such shares, rising, and the time of the layers there as a part of the original's.
        enough: loss of a draft above which its plan is not taken.
    """

    share: float
    times: tuple[tuple[float, float], ...]
    enough: float


@dataclass(frozen=True)
class LeftOut:
    """What was not done to find the plan and to repair the model, for want of effort.

    Attributes:
        effort: that was asked for.
        macs: of one run over the calibration samples, where they are too many to build as many
            plans as for other models; None where no plan was built to be judged.
    """

    effort: str
    macs: int | None = None


@dataclass(frozen=True)
class GroupsWeighed:
    """The judge's losses of plans whose channels were chosen by measured losses of groups.

    Attributes:
        losses: on held-out samples, beside the parts of the saving that taking channels out makes.
        kept: whether one of them is taken.
        samples: that the losses stand on.
    """

    losses: tuple[tuple[float, float], ...]
    kept: bool
    samples: int


@dataclass(frozen=True)
class HeadsWhole:
    """The judge's losses of a plan that takes layers of class scores apart and of one without.

    Attributes:
        layers: those that make class scores.
        apart: loss of the plan that takes them apart, on held-out samples.
        whole: loss of the plan that leaves them alone.
        samples: that the losses stand on.
    """

    layers: tuple[str, ...]
    apart: float
    whole: float
    samples: int


@dataclass(frozen=True)
class SearchResult:
    """The smallest budget that keeps what is required.

    Attributes:
        understood: the bound as it was understood.
        target: the budget that was found.
        requirement: what it keeps.
        searched: score on the samples of the search.
        confirmed: score on those held back to confirm.
        tried: all budgets, as parts of the original, and the scores there; None where one is out
            of reach.
    """

    understood: str
    target: str
    requirement: str
    searched: str
    confirmed: str
    tried: tuple[tuple[float, str | None], ...]


@dataclass(frozen=True)
class ChainsAreSlower:
    """Chains that take more time than their layers, and that the budget cannot do without."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class ChainsTakenBack:
    """Chains that took more time than their layers, and were not used."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class TimeBesideProducts:
    """What keeps the time from falling as the MACs do: operators that have none.

    Attributes:
        batch: samples of an inference.
        speedup: factor by which the model is faster than the original.
        promised: the original's MACs over the model's.
        before: parts of the original's time that such operators take, by name.
        after: parts of the model's time, likewise.
    """

    batch: int
    speedup: float
    promised: float
    before: Mapping[str, float]
    after: Mapping[str, float]


Note = (
    Remark
    | Resumed
    | OtherData
    | SizeNotReached
    | AlreadyKept
    | LatencyOfPlan
    | LatencyOfPruning
    | Round
    | SearchResult
    | ChainsAreSlower
    | ChainsTakenBack
    | GroupsWeighed
    | HeadsWhole
    | InInt8
    | TimeBesideProducts
    | SharesTried
    | LeftOut
    | NearEnough
    | Quickest
    | SomeCompared
    | WeightsAsInputs
)
