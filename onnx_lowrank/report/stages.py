"""What each stage of a result is worth: the original, int8 alone, compressed, and both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_lowrank.judge.verdict import Estimate
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.report.check import latencies

__all__ = ["Stage", "stages_table"]


@dataclass(frozen=True)
class Stage:
    """A model on the way from the original to the result.

    Attributes:
        name: what was done.
        bytes: size of the model.
        latency: the original and this model in alternation, at some batch sizes; empty for the
            original itself.
        loss: the judge's loss.
        kept: part of the answers that stay, of the output that keeps least.
    """

    name: str
    bytes: int
    latency: tuple[LatencyPair, ...]
    loss: Estimate
    kept: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "bytes": self.bytes,
            "latency": latencies(self.latency),
            "loss": self.loss.to_list(),
            "kept": self.kept.to_list(),
        }


def stages_table(stages: Sequence[Stage]) -> RenderableType:
    """A column for each stage: bytes, the time of each batch, and what the judge says.

    Times are those of the original divided by the speed-ups, each of which was measured in
    alternation with it: a machine that slowed down meanwhile makes no stage slower.
    """
    table = Table(title="int8 and low rank", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for stage in stages:
        table.add_column(stage.name, justify="right")
    first = stages[0]
    table.add_row("bytes", *(f"{s.bytes:,} ({s.bytes / first.bytes:.3f})" for s in stages))
    timed = [s for s in stages if s.latency]
    for place, pair in enumerate(timed[0].latency if timed else ()):
        cells = [
            f"{pair.reference_ms / s.latency[place].speedup:.3g} ms "
            f"({s.latency[place].speedup:.2f}x)"
            if s.latency
            else f"{pair.reference_ms:.3g} ms"
            for s in stages
        ]
        table.add_row(f"time, batch {pair.batch}", *cells)
    table.add_row("loss", *(f"{s.loss.value:.2%}" for s in stages))
    table.add_row("stays, 95 % interval", *(_kept(s.kept) for s in stages))
    return Group(table, Text())


def _kept(kept: Estimate) -> str:
    low, high = (min(max(v, 0.0), 1.0) for v in (kept.low, kept.high))
    return f"{kept.value:.1%} [{low:.1%}, {high:.1%}]"
