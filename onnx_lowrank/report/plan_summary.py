"""A plan in a few lines: layers by method, what they would cost, and the channels that go."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan

__all__ = ["print_summary"]


def print_summary(plan: Plan, console: Console) -> None:
    """Print the tables of a plan."""
    console.print(_layers(plan))
    if plan.groups:
        console.print(_groups(plan.groups))


def _layers(plan: Plan) -> RenderableType:
    table = _table(f"plan for {plan.target}: layers", "method")
    for column in ("layers", "MACs", "after", "left", "parameters", "after", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    by_method: dict[str, list[Decision]] = {}
    for d in plan.decisions:
        key = d.method if d.replaces else d.decision
        by_method.setdefault(key, []).append(d)
    for method, decisions in sorted(by_method.items()):
        _row(table, method, decisions)
    _row(table, "all", plan.decisions)
    return Group(table, Text())


def _row(table: Table, name: str, decisions: Sequence[Decision]) -> None:
    cells = []
    for unit in ("macs", "parameters"):
        before, after = (sum(getattr(d, f"{unit}_{k}") for d in decisions)
                         for k in ("before", "after"))  # fmt: skip
        cells += [f"{before:,}", f"{after:,}", f"{after / before:.3f}" if before else ""]
    table.add_row(Text(name), str(len(decisions)), *cells)


def _groups(groups: Sequence[GroupDecision]) -> RenderableType:
    table = _table("groups of channels", "decision")
    for column in ("groups", "channels", "left", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    for decision in ("cut", "gather", "keep", "frozen"):
        own = [g for g in groups if g.decision == decision]
        if not own:
            continue
        left = sum(len(g.kept) if g.shrinks else g.size for g in own)
        loss = f"{sum(g.loss for g in own):.4f}" if own[0].shrinks else ""
        table.add_row(decision, str(len(own)), str(sum(g.size for g in own)), str(left), loss)
    return Group(table, Text())


def _table(title: str, first: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column(first, overflow="fold")
    return table
