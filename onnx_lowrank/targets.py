"""What is asked for: budgets as parts of the original, or a rule for ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.cost import Cost
from onnx_lowrank.errors import OptionError
from onnx_lowrank.linalg.rank_rules import RankRule

__all__ = ["DEFAULT_TARGET", "METRICS", "Target", "cost_of", "parse_target"]

DEFAULT_TARGET = "macs=0.5"

#: what a budget may be put on
METRICS = ("macs", "params", "size", "latency")


@dataclass(frozen=True)
class Target:
    """Budgets to be kept together, or a rule that gives every layer its own rank.

    Attributes:
        budgets: metric and ratio of the original.
        rule: None for the planner.
    """

    budgets: tuple[tuple[str, float], ...]
    rule: RankRule | None = None

    @classmethod
    def parse(
        cls, target: str | Sequence[str] | None, ranks: str = "planner", searched: bool = False
    ) -> Target:
        """Of ``macs=0.5``, or several such, and of ``planner`` or a rule.

        Args:
            target: what is asked for.
            ranks: how ranks are found.
            searched: the ratio is looked for, and need not be given.

        Raises:
            OptionError: it is not of that form, or both a target and a rule are given.
        """
        rule = None
        if ranks != "planner":
            try:
                rule = RankRule.parse(ranks)
            except ValueError as error:
                raise OptionError(f"{error}, or planner") from error
            if target is not None:
                raise OptionError(f"ranks by {rule} know of no target; give one of the two")
        asked = [target] if isinstance(target, str) else list(target or [DEFAULT_TARGET])
        if searched:
            asked = [f"{t}=1" if t in METRICS else t for t in asked]
        budgets = tuple(parse_target(t) for t in asked)
        if len({metric for metric, _ in budgets}) < len(budgets):
            raise OptionError(f"two targets for one thing: {', '.join(asked)}")
        return cls(budgets, rule)

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
        """The same with another ratio of the first budget, which must be the only one."""
        ((metric, _),) = self.budgets
        return replace(self, budgets=((metric, ratio),))

    def __str__(self) -> str:
        if self.rule is not None:
            return f"ranks {self.rule}"
        return " ".join(f"{metric}={ratio:g}" for metric, ratio in self.budgets)


def parse_target(text: str) -> tuple[str, float]:
    """``macs=0.5`` to its metric and ratio.

    Raises:
        OptionError: it is not of that form.
    """
    metric, equals, value = text.partition("=")
    try:
        ratio = float(value)
    except ValueError:
        ratio = float("nan")
    if not equals or metric not in METRICS or not 0 < ratio <= 1:
        raise OptionError(
            f"target {text!r}; write {' or '.join(f'{m}=R' for m in METRICS)} with 0 < R <= 1"
        )
    return metric, ratio


def cost_of(cost: Cost, metric: str) -> int:
    """What a cost is in that metric."""
    return {"macs": cost.macs, "params": cost.parameters, "size": cost.bytes}[metric]
