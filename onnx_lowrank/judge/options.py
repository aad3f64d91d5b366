"""Options of what outputs are judged by, and of what must be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.judge.comparison import Loss
from onnx_lowrank.judge.judge import AS_FOUND, Judging
from onnx_lowrank.judge.readings import parse_kinds
from onnx_lowrank.judge.requirement import (
    GUARDED,
    NEARLY_ALL,
    Metric,
    Requirement,
    check_bound,
    read_bound,
)
from onnx_lowrank.option_values import percent
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.samples.user_code import python_function

__all__ = ["JudgeOptions", "KeepOptions"]


def _judge(text: str) -> dict[str, str] | Loss:
    return python_function(text) or parse_kinds(text)


def _metric(text: str) -> Metric:
    found = python_function(text)
    if found is None:
        raise ValueError(f"{text!r}; write file.py:function")
    return found


@dataclass(frozen=True)
class KeepOptions(OptionGroup):
    """What must be kept, at the smallest budget that keeps it."""

    title: ClassVar[str] = "the smallest model that keeps"

    max_drop: float | str | None = option(
        None,
        "Largest accuracy loss allowed, for instance 1%, counted in labels of the data; with a "
        "metric in its own units. The smallest budget that keeps it is searched: of what the "
        "target names without a ratio, else of MACs.",
        metavar="1%",
    )
    min_agreement: float | str | None = option(
        None,
        "Smallest part of samples that keep their first class, for instance 99%; searched alike.",
        metavar="99%",
    )
    min_snr: float | str | None = option(
        None,
        "Smallest signal-to-noise ratio of the outputs in dB, for instance 30dB; searched alike.",
        metavar="30dB",
    )
    max_loss: float | str | None = option(
        None,
        "Largest loss by the judge, for instance 2%: 0 is the original, 100% tells no sample from "
        "another; in its own units where the judge is a function. Searched alike.",
        metavar="2%",
    )
    metric: Metric | None = option(
        None,
        "For --max-drop, in the place of accuracy: a function of outputs by name and labels, and "
        "of inputs where it has such a parameter, which returns a number; higher is better.",
        metavar="FILE.py:FUNCTION",
        read=_metric,
    )

    def requirement(self) -> Requirement | None:
        """The requirement, or None where nothing must be kept.

        Raises:
            OptionError: more than one is given, or one is out of range.
        """
        own = self.metric is not None
        return Requirement.of(
            read_bound("drop", self.max_drop, own),
            read_bound("agreement", self.min_agreement),
            read_bound("snr", self.min_snr),
            self.metric,
            read_bound("loss", self.max_loss),
        )


@dataclass(frozen=True)
class JudgeOptions(OptionGroup):
    """What outputs are judged by, and how much of their answers must stay."""

    title: ClassVar[str] = "judge"

    judge: str | Mapping[str, str] | Loss | None = option(
        None,
        "What outputs mean, where that is not found out rightly: kl (class scores), bernoulli "
        "(behind a Sigmoid), cosine (directions), l2, equal or none, as scores=kl,boxes=l2; or a "
        "function of the original's outputs, the new ones and the inputs, which returns a loss.",
        metavar="OUTPUT=KIND,...|FILE.py:FUNCTION",
        read=_judge,
    )
    min_kept: float | str | None = option(
        None,
        "Smallest part of the answers that must stay: samples that keep their class (sequences "
        "their reading, pixels their class), or the correlation of other outputs. A result that "
        f"clearly keeps less is refused ({percent(GUARDED)} by default); without a target, the "
        f"smallest latency that keeps it is searched ({percent(NEARLY_ALL)}).",
        metavar="90%",
    )

    def judging(self) -> Judging:
        """What the user wants outputs to be judged by.

        Raises:
            OptionError: the text is of another form.
        """
        if self.judge is None:
            return AS_FOUND
        given = _judge(self.judge) if isinstance(self.judge, str) else self.judge
        return Judging(function=given) if callable(given) else Judging(dict(given))

    def kept(self, default: float) -> float:
        """The part of the answers that must stay.

        Raises:
            OptionError: it is no fraction.
        """
        bound = read_bound("kept", self.min_kept)
        if bound is None:
            return default
        check_bound("kept", bound)
        return bound
