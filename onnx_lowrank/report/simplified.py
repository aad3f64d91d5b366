"""What a simplifier brought, told apart from what compressing did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.report.check import latencies

__all__ = ["Simplified"]


@dataclass(frozen=True)
class Simplified:
    """The original beside its simplified copy, which all else in a report starts from.

    Attributes:
        by: the simplifier and its version.
        nodes: number of nodes before and after.
        before: cost of the original.
        after: cost of the copy.
        latency: both in alternation, at some batch sizes.
        samples: number of samples on which outputs were seen to stay the same.
    """

    by: str
    nodes: tuple[int, int]
    before: Cost
    after: Cost
    latency: tuple[LatencyPair, ...]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "by": self.by,
            "nodes": {"before": self.nodes[0], "after": self.nodes[1]},
            "macs": {"before": self.before.macs, "after": self.after.macs},
            "bytes": {"before": self.before.bytes, "after": self.after.bytes},
            "latency": latencies(self.latency),
            "samples": self.samples,
        }

    @property
    def said(self) -> str:
        """The gain in words."""
        times = "; ".join(
            f"batch {p.batch}: {p.reference_ms:.3g} ms -> {p.new_ms:.3g} ms, {p.speedup:.2f}x"
            for p in self.latency
        )
        return (
            f"simplified by {self.by} before anything else: {self.nodes[0]} -> {self.nodes[1]} "
            f"nodes, {self.before.macs:,} -> {self.after.macs:,} MACs, {self.before.bytes:,} -> "
            f"{self.after.bytes:,} bytes; {times}; the same outputs on {self.samples} samples; all "
            "other figures start from the simplified model"
        )
