"""Figures that rows may hold, each with its unit; a name means the same in all benchmarks."""

from __future__ import annotations

__all__ = ["PART", "UNITS", "promise_name", "speedup_name"]

#: unit of ratios to the original
PART = "part of the original"

_OF_TESTED = "part of the test samples"
_RATIO = "times the speed of the original"


def speedup_name(threads: int, batch: int) -> str:
    """Name of the speed-up at so many threads and samples."""
    return f"speedup_threads{threads}_batch{batch}"


def promise_name(batch: int) -> str:
    """Name of the part of the promised speed-up that one thread brings with so many samples."""
    return f"promise_batch{batch}"


#: unit by name
UNITS: dict[str, str] = {
    "macs": PART,
    "params": PART,
    "bytes": PART,
    "accuracy_before": _OF_TESTED,
    "accuracy": _OF_TESTED,
    "agreement": _OF_TESTED,
    "wrong_before": "test samples",
    "wrong": "test samples",
    "differ": "test samples",
    "snr": "dB",
    "snr_boxes": "dB",
    "snr_scores": "dB",
    "lines_before": _OF_TESTED,
    "lines": _OF_TESTED,
    "sts_before": "100 times Spearman's correlation",
    "sts": "100 times Spearman's correlation",
    "boxes": "boxes",
    "boxes_matched": "part of the boxes of the original",
    "scores_kept": _OF_TESTED,
    **{speedup_name(t, b): _RATIO for t in (1, 2) for b in (1, 16)},
    **{promise_name(b): "part of the speed-up that MACs promise" for b in (1, 16)},
    "original_ms": "ms",
    "new_ms": "ms",
    "speedup": _RATIO,
    "speedup_with_copies": _RATIO,
    "least_time": "time of the layer",
    "half_time": "time of the layer",
    "odd_by_eight": "time at the next multiple of 8",
    "eight_by_sixteen": "time at the next multiple of 16",
    "loss": "part of the judge's loss of a model that always answers alike",
    "speedup_low": _RATIO,
    "speedup_high": _RATIO,
    "planned_error": "sum of relative response errors",
    "seconds": "s",
    "cpu_seconds": "s",
    "pass_seconds": "s",
    "passes": "runs of the original over the calibration samples",
    "peak_bytes": "bytes",
    "layers": "layers",
    "eligible": "layers",
    "factorized": "layers",
    "chains": "chains",
    "mac_time": "ns",
    "number_moved": "MACs",
    "number_out_of_blocks": "MACs",
    "node_called": "MACs",
    "scatter": "standard deviation of the logarithm of time",
    "scatter_of_plans": "standard deviation of the logarithm of time",
}
