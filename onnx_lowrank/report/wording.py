"""The notes of a report in words."""

from __future__ import annotations

import math

from onnx_lowrank.judge.verdict import Estimate, ReadingVerdict
from onnx_lowrank.planning import notes as n

__all__ = ["figures_in_words", "kept_in_words", "means", "worded"]

_ROUNDS = {
    "same": "the same plan",
    "no better": "no plan that promises less loss",
    "kept": "kept",
    "dropped": "dropped",
}


#: what is kept of an output, by :attr:`ReadingVerdict.answer`
_KEPT = {
    "samples": "the first class of {}",
    "sequences": "the whole sequence of classes of {}",
    "positions": "the first class at {} of the positions",
    "places": "the first class at {} of the places where something is seen",
    "boxes": "boxes that overlap the original's by {}",
    "values": "{} of the values",
    "correlation": "a correlation with the original of {}",
}
_MEANS = {
    "kl": "class scores",
    "bernoulli": "behind a Sigmoid",
    "boxes": "boxes",
    "cosine": "directions",
    "l2": "numbers",
    "equal": "exact values",
}
_FIGURES = {
    "same_positions": "same first class at {:.1%} of positions",
    "overlap": "overlap {:.4f}",
    "cosine": "cosine {:.4f}",
    "neighbours": "{:.1%} of nearest 5 stay",
}


def means(kind: str) -> str:
    """What an output was judged as, by the kind of its reading."""
    return _MEANS[kind]


def kept_in_words(verdict: ReadingVerdict) -> str:
    """How much of an output's answers stays, with its interval."""
    kept = verdict.kept
    if not math.isfinite(kept.value):
        return "nothing (NaN or Inf where the original has numbers)"
    return _KEPT[verdict.answer].format(_interval(kept))


def figures_in_words(verdict: ReadingVerdict) -> str:
    """The other figures of an output, without their intervals."""
    shown = dict(verdict.figures)
    if verdict.answer == "samples":
        shown.pop("same_positions", None)
    return ", ".join(
        text.format(shown[name].value) for name, text in _FIGURES.items() if name in shown
    )


def _interval(estimate: Estimate) -> str:
    low, high = (min(max(v, 0.0), 1.0) for v in (estimate.low, estimate.high))
    return f"{estimate.value:.1%} [{low:.1%}, {high:.1%}]"


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
                f"{note.bytes:,} bytes are left ({note.left:.4f} of the original's), not "
                f"{note.asked}: names took the rest"
            )
        case n.AlreadyKept():
            return f"{note.asked}: the original has {note.original}, so nothing had to go for it"
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
                    f"loss {note.before:.2%} to {note.after:.2%} on {note.samples} "
                    "samples that neither is solved on, "
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
        case n.HeadsWhole():
            kept = "left alone" if note.whole < note.apart else "taken apart"
            return (
                f"class scores ({', '.join(note.layers)}): loss {note.apart:.2%} taken apart, "
                f"{note.whole:.2%} left alone, on {note.samples} samples that neither is solved "
                f"on; {kept}"
            )
        case n.InInt8():
            return _in_int8(note)
        case n.GroupsWeighed():
            return (
                "channels chosen by what cutting each group does to the outputs: drafts lose "
                f"{_at_shares(note.losses)}, on {note.samples} samples that they are not solved "
                f"on; {'kept' if note.kept else 'dropped'}"
            )
        case n.SharesTried():
            return (
                "share of the saving that pruning makes: drafts lose "
                f"{_at_shares(note.losses)}, on {note.samples} "
                f"samples that they are not solved on; {note.share:.0%} is taken"
            )
        case n.SomeCompared():
            return (
                f"compared on {note.samples} of {note.given} samples that did not calibrate, spread"
                " evenly: onnx-lowrank validate compares on all"
            )
        case n.NearEnough():
            return (
                f"a draft of the first plan loses {note.loss:.2%} on {note.samples} "
                "samples that it is not solved on; no other was made (--effort thorough looks for "
                "a better one)"
            )
        case n.Quickest():
            times = ", ".join(f"{time:.0%} at {share:.0%}" for share, time in note.times)
            return (
                "chains alone would save next to no time, as they have more nodes: layers are "
                f"foreseen to take {times} of the saving made by pruning; of those whose drafts "
                f"lose less than {note.enough:.2%}, {note.share:.0%} is taken"
            )
        case n.WeightsAsInputs():
            return (
                f"all {note.initializers:,} initializers are listed as inputs too, as exporters "
                "did before IR version 4: they were taken for constants, and are inputs no more, "
                "which by itself lets ONNX Runtime run the model faster"
            )
        case n.LeftOut():
            if note.macs is None:
                return (
                    f"{note.effort} effort: predictions alone decided, no plan was built to be "
                    "compared"
                )
            return (
                f"{note.effort} effort: one run over the calibration samples takes "
                f"{note.macs / 1e9:,.0f} GMACs, so the part of the saving that pruning makes was "
                "not moved, and layers were solved on a part of the samples (fewer --samples, or "
                "--effort thorough, does both)"
            )
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


def _at_shares(losses: tuple[tuple[float, float], ...]) -> str:
    """Losses beside shares of the saving, in words."""
    return ", ".join(f"{loss:.2%} at {share:.0%}" for share, loss in losses)


def _in_int8(note: n.InInt8) -> str:
    tried = f"{note.runs} models in int8 were judged"
    if not note.layers:
        return f"int8 ({note.mode}): no layer can be borne in int8, so none is; {tried}"
    beside = ", other operators too" if note.every_kind else ""
    said = f"int8 ({note.mode}): {note.layers} layers, weights of {note.bits} bits{beside}"
    if note.left:
        some = ", ".join(note.left[:5]) + (", ..." if len(note.left) > 5 else "")
        said += f"; {len(note.left)} that cost too much stay in floating point: {some}"
    return "; ".join([said, *note.remarks, tried])
