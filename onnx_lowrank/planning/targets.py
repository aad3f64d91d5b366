"""Targets: budgets as parts of the original or as amounts, or a rule for ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.errors import OptionError
from onnx_lowrank.linalg.rank_rules import RankRule
from onnx_lowrank.option_values import fraction
from onnx_lowrank.planning.amounts import Amount, read_amount

__all__ = ["DEFAULT_TARGET", "METRICS", "Target", "parse_target"]

DEFAULT_TARGET = "macs=0.5"

#: quantities that a target may limit
METRICS = ("macs", "params", "size", "latency")

#: other names of quantities, as tables have them
_ALSO = {"bytes": "size"}


@dataclass(frozen=True)
class Target:
    """Budgets to be kept together, or a rule that gives every layer its own rank.

    Attributes:
        budgets: pairs of a quantity (:data:`METRICS`) and its largest part of the original; of
            :attr:`amounts` the whole, until :meth:`of` has what the original has.
        rule: rule for ranks; None for the planner.
        searched: quantities whose part, the same for all of them, is searched for.
        amounts: the budgets that were asked for in units of their own.
    """

    budgets: tuple[tuple[str, float], ...]
    rule: RankRule | None = None
    searched: tuple[str, ...] = ()
    amounts: tuple[Amount, ...] = ()

    @classmethod
    def parse(
        cls, target: str | Sequence[str] | None, ranks: str = "planner", search: bool = False
    ) -> Target:
        """Read a target from the texts that the user gave.

        Args:
            target: ``macs=0.5`` or ``macs=300M``, or several such; None for the default.
            ranks: ``planner``, or a rule for ranks.
            search: whether a ratio is searched for: the ratio of the quantities that are named
                alone (``latency``), by default of ``macs``.

        Raises:
            OptionError: a text has another form, both a target and a rule are given, or there is
                nothing to search for.
        """
        rule = None
        if ranks != "planner":
            try:
                rule = RankRule.parse(ranks)
            except ValueError as error:
                raise OptionError(f"{error}, or planner") from error
            if target is not None or search:
                other = "a target" if target is not None else "a search"
                raise OptionError(
                    f"ranks by {rule} cannot be combined with {other}; give one of the two"
                )
        default = DEFAULT_TARGET.partition("=")[0] if search else DEFAULT_TARGET
        asked = [target] if isinstance(target, str) else list(target or [default])
        asked_for = [_ALSO.get(t, t) for t in asked]
        searched = tuple(t for t in asked_for if search and t in METRICS)
        read = [(t, 1.0) if t in searched else parse_target(t) for t in asked_for]
        amounts = tuple(b for b in read if isinstance(b, Amount))
        budgets = tuple((b.metric, 1.0) if isinstance(b, Amount) else b for b in read)
        if search and not searched:
            raise OptionError(
                f"target {' '.join(asked)} leaves nothing to search for; give the quantity without "
                f"a number ({budgets[0][0]}), or add another without one"
            )
        if len({metric for metric, _ in budgets}) < len(budgets):
            raise OptionError(
                f"two targets limit the same quantity: {', '.join(asked)}; give one of them"
            )
        return cls(budgets, rule, searched, amounts)

    @classmethod
    def from_text(cls, text: str) -> Target:
        """The target that ``str`` has written, as it stands in a plan.

        Raises:
            OptionError: it is not of that form.
        """
        rule = text.removeprefix("ranks ")
        if rule not in (text, "planner"):
            return cls.parse(None, rule)
        return cls.parse(text.split() or text)

    @property
    def metric(self) -> str:
        """The quantity that pruning and single budgets are counted in; never latency."""
        kinds = [metric for metric, _ in self.budgets if metric != "latency"]
        return kinds[0] if kinds else "macs"

    @property
    def limits_size(self) -> bool:
        """Whether parameters or bytes are limited, and so layers that multiply nothing count."""
        return self.rule is None and any(m in ("params", "size") for m, _ in self.budgets)

    @property
    def ratio(self) -> float:
        """The part asked for of :attr:`metric`; a part of the latency stands for one of MACs."""
        budgets = dict(self.budgets)
        return budgets.get(self.metric, budgets.get("latency", 1.0))

    @property
    def latency(self) -> float | None:
        """The part of the original's latency, if a target limits it."""
        return dict(self.budgets).get("latency")

    def of(self, original: Mapping[str, float]) -> Target:
        """The same with amounts as parts of what the original has, the whole at the most.

        Args:
            original: MACs, parameters, bytes and milliseconds by quantity; amounts of quantities
                that it leaves out stay as they are.
        """
        parts = {
            a.metric: min(a.value / original[a.metric], 1.0)
            for a in self.amounts
            if original.get(a.metric)
        }
        return replace(self, budgets=tuple((m, parts.get(m, r)) for m, r in self.budgets))

    def at(self, ratio: float) -> Target:
        """The same target with ``ratio`` for the quantities that are searched."""
        budgets = ((m, ratio if m in self.searched else r) for m, r in self.budgets)
        return replace(self, budgets=tuple(budgets))

    def __str__(self) -> str:
        if self.rule is not None:
            return f"ranks {self.rule}"
        amounts = {a.metric: str(a) for a in self.amounts}
        return " ".join(amounts.get(m, f"{m}={ratio:g}") for m, ratio in self.budgets)


def parse_target(text: str) -> tuple[str, float] | Amount:
    """Read the quantity and its ratio from ``macs=0.5`` or ``macs=50%``, or its amount.

    Raises:
        OptionError: the text has another form.
    """
    metric, equals, value = text.partition("=")
    metric = _ALSO.get(metric, metric)
    wanted = f"write {' or '.join(f'{m}=R' for m in METRICS)} with 0 < R <= 1"
    if not equals or metric not in METRICS:
        raise OptionError(f"target {text!r}; {wanted}")
    wanted += ", or an amount: macs=300M, params=1M, size=2MiB or latency=8ms"
    try:
        if read_amount(metric, value) is not None:
            return Amount(metric, "".join(value.split()))
        ratio = fraction(value)
    except ValueError as error:
        raise OptionError(f"target {text!r}: {error} ({wanted})") from error
    if not ratio:
        raise OptionError(f"target {text!r} leaves nothing of the model; {wanted}")
    return metric, ratio
