"""What is asked for: budgets as parts of the original, or a rule for ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.errors import OptionError
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.option_values import fraction

__all__ = ["DEFAULT_TARGET", "METRICS", "Target", "parse_target"]

DEFAULT_TARGET = "macs=0.5"

#: what a budget may be put on
METRICS = ("macs", "params", "size", "latency")


@dataclass(frozen=True)
class Target:
    """Budgets to be kept together, or a rule that gives every layer its own rank.

    Attributes:
        budgets: metric and ratio of the original.
        rule: None for the planner.
        searched: metrics whose ratio, the same for all of them, is looked for.
    """

    budgets: tuple[tuple[str, float], ...]
    rule: RankRule | None = None
    searched: tuple[str, ...] = ()

    @classmethod
    def parse(
        cls, target: str | Sequence[str] | None, ranks: str = "planner", search: bool = False
    ) -> Target:
        """Of ``macs=0.5``, or several such, and of ``planner`` or a rule.

        Args:
            target: what is asked for.
            ranks: how ranks are found.
            search: a ratio is looked for: that of ``macs``, or of what has none, as ``latency``.

        Raises:
            OptionError: it is not of that form, both a target and a rule are given, or there is
                nothing to search.
        """
        rule = None
        if ranks != "planner":
            try:
                rule = RankRule.parse(ranks)
            except ValueError as error:
                raise OptionError(f"{error}, or planner") from error
            if target is not None or search:
                what = "target; give one of the two" if target is not None else "bound to search by"
                raise OptionError(f"ranks by {rule} know of no {what}")
        default = DEFAULT_TARGET.partition("=")[0] if search else DEFAULT_TARGET
        asked = [target] if isinstance(target, str) else list(target or [default])
        searched = tuple(t for t in asked if search and t in METRICS)
        budgets = tuple((t, 1.0) if t in searched else parse_target(t) for t in asked)
        if search and not searched:
            raise OptionError(
                f"nothing to search with {' '.join(asked)} given; name the metric alone, as in "
                f"{budgets[0][0]}, or add another"
            )
        if len({metric for metric, _ in budgets}) < len(budgets):
            raise OptionError(f"two targets for one thing: {', '.join(asked)}")
        return cls(budgets, rule, searched)

    @property
    def metric(self) -> str:
        """What pruning and single budgets are counted in: never time."""
        kinds = [metric for metric, _ in self.budgets if metric != "latency"]
        return kinds[0] if kinds else "macs"

    @property
    def ratio(self) -> float:
        """That of :attr:`metric`; time is taken for as many MACs."""
        budgets = dict(self.budgets)
        return budgets.get(self.metric, budgets.get("latency", 1.0))

    @property
    def latency(self) -> float | None:
        """Part of the original's time, if that is asked for."""
        return dict(self.budgets).get("latency")

    def at(self, ratio: float) -> Target:
        """The same with this ratio of what is searched."""
        budgets = ((m, ratio if m in self.searched else r) for m, r in self.budgets)
        return replace(self, budgets=tuple(budgets))

    def __str__(self) -> str:
        if self.rule is not None:
            return f"ranks {self.rule}"
        return " ".join(f"{metric}={ratio:g}" for metric, ratio in self.budgets)


def parse_target(text: str) -> tuple[str, float]:
    """The metric and the ratio of ``macs=0.5`` or ``macs=50%``.

    Raises:
        OptionError: it is not of that form.
    """
    metric, equals, value = text.partition("=")
    wanted = f"write {' or '.join(f'{m}=R' for m in METRICS)} with 0 < R <= 1"
    if not equals or metric not in METRICS:
        raise OptionError(f"target {text!r}; {wanted}")
    try:
        ratio = fraction(value)
    except ValueError as error:
        raise OptionError(f"target {text!r}: {error} ({wanted})") from error
    if not ratio:
        raise OptionError(f"target {text!r} leaves nothing; {wanted}")
    return metric, ratio
