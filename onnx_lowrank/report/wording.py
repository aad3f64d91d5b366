"""The notes of a report in words."""

from __future__ import annotations

from onnx_lowrank.planning import notes as n

__all__ = ["worded"]

_ROUNDS = {
    "same": "the same plan",
    "no better": "no plan that promises less loss",
    "kept": "kept",
    "dropped": "dropped",
}


def worded(note: n.Note) -> str:
    """One sentence for people, without a full stop."""
    match note:
        case n.Remark():
            return note.text
        case n.Resumed():
            return "what an interrupted run had read of the samples was not read again"
        case n.OtherData():
            return "the calibration data is not that of the plan; the weights differ from it"
        case n.SizeNotReached():
            return (
                f"{note.left:.4f} of the bytes are left, not size={note.asked:g}: names took the "
                "rest"
            )
        case n.LatencyOfPlan():
            again = "; planned again by that" if note.again else ""
            return (
                f"latency at batch {note.batch}: {note.predicted:.3f} of the original predicted, "
                f"{note.measured:.3f} measured; {note.coverage}{again}"
            )
        case n.LatencyOfPruning():
            return (
                f"latency at batch {note.batch}: {note.measured:.3f} of the original measured; "
                "pruning alone counts MACs in place of time"
            )
        case n.Round():
            said = f"round {note.number} with measured sensitivities: "
            if note.outcome in ("kept", "dropped"):
                said += (
                    f"{note.before:.2f} to {note.after:.2f} dB on {note.samples} held-out samples, "
                )
            return said + _ROUNDS[note.outcome]
        case n.SearchResult():
            tried = ", ".join(f"{r:g} ({score or 'out of reach'})" for r, score in note.tried)
            return (
                f"{note.understood}; {note.target} is the least with {note.requirement}: "
                f"{note.searched} of the search, {note.confirmed} held back to confirm; "
                f"tried {tried}"
            )
        case n.ChainsAreSlower():
            return f"slower than the layers that they replace: {', '.join(note.layers)}"
        case n.ChainsTakenBack():
            return f"taken back, slower than the layers: {', '.join(note.layers)}"
        case n.TimeBesideProducts():
            share = sum(note.before.values())
            most = sorted(note.before, key=lambda name: -note.before[name])[:3]
            named = ", ".join(f"{name} {note.before[name]:.0%}" for name in most)
            named = f" ({named})" if named else ""
            bound = f", so that no plan is faster than {1 / share:.1f}x" if share > 0 else ""
            return (
                f"time at batch {note.batch}: {note.speedup:.2f}x for {note.promised:.2f}x fewer "
                f"MACs; operators that are no convolutions or products of matrices take "
                f"{share:.0%} of the original's time{named}{bound}, and "
                f"{sum(note.after.values()):.0%} of what is left"
            )
