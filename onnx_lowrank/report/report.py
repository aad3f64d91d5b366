"""What was done, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.judge.checks import Accuracy, OutputCheck, Validation
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.planning.notes import Note
from onnx_lowrank.planning.plan import Decision, GroupDecision
from onnx_lowrank.refit.refit import Refit
from onnx_lowrank.report.check import SCHEMA, Basis, as_text, costs, latencies, validated
from onnx_lowrank.report.simplified import Simplified
from onnx_lowrank.report.stages import Stage, stages_table
from onnx_lowrank.report.wording import figures_in_words, kept_in_words, means, worded

__all__ = ["LayerLoss", "Report", "model_table", "outputs_table", "short"]


@dataclass(frozen=True)
class LayerLoss:
    """What one layer costs in the judge's loss.

    Attributes:
        layer: name of the layer.
        loss: how much less the loss would be with the layer whole.
        whole: loss of the model, on the same samples.
        samples: number of these.
    """

    layer: str
    loss: float
    whole: float
    samples: int


@dataclass(frozen=True)
class Report:
    """All of a run.

    Attributes:
        before: cost of the model as given.
        after: cost of the model as written.
        target: as asked.
        decisions: one for each node with weights.
        groups: one for each group of channels, where channels were pruned.
        refits: one for each chain that was solved again.
        validation: on samples that were not used to calibrate.
        latency: of both models in alternation, at some batch sizes.
        notes: what a user should know besides.
        seconds: wall time by step.
        version: of this package.
        plan: digest of the plan.
        seed: of all random draws.
        basis: what the report stands on.
        costliest: layers that cost most of the judge's loss, the first the most; empty where that
            was not measured.
        stages: the original, int8 alone, compressed, and both, where the result is in int8.
        simplified: the original beside its simplified copy, where all other figures start from one.
        layer_times: milliseconds of a layer, and of what became of it, by its name; None where
            ONNX Runtime does not name its kernels.
    """

    before: Cost
    after: Cost
    target: str
    decisions: tuple[Decision, ...]
    groups: tuple[GroupDecision, ...]
    refits: tuple[Refit, ...]
    validation: Validation
    latency: tuple[LatencyPair, ...]
    notes: tuple[Note, ...]
    seconds: dict[str, float]
    version: str
    plan: str
    seed: int
    basis: Basis
    costliest: tuple[LayerLoss, ...] = ()
    stages: tuple[Stage, ...] = ()
    simplified: Simplified | None = None
    layer_times: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)

    @property
    def macs_ratio(self) -> float:
        """MACs after over MACs before; 1 where none could be counted."""
        return self.after.macs / self.before.macs if self.before.macs else 1.0

    @property
    def said(self) -> tuple[str, ...]:
        """The notes in words."""
        return tuple(worded(note) for note in self.notes)

    def to_dict(self, command: str = "") -> dict[str, Any]:
        """Plain data, as written by ``--report``.

        Args:
            command: as it was given; empty where there was none.
        """
        checked, accuracy = validated(self.validation)
        return {
            "schema": SCHEMA,
            "kind": "compress",
            "version": self.version,
            "target": self.target,
            "seed": self.seed,
            "plan": self.plan,
            "model": costs(self.before, self.after, self.latency),
            "layers": [self._layer(d) for d in self.decisions],
            "groups": [asdict(g) for g in self.groups],
            "refit": [_finite(asdict(r)) for r in self.refits],
            "validation": checked,
            "costliest": [asdict(c) for c in self.costliest],
            "accuracy": accuracy,
            "latency": latencies(self.latency),
            "stages": [s.to_dict() for s in self.stages],
            "simplified": None if self.simplified is None else self.simplified.to_dict(),
            "notes": list(self.said),
            "seconds": self.seconds,
            "gate": None,
            "basis": self.basis.to_dict(command, self.plan),
        }

    def to_json(self, command: str = "") -> str:
        """:meth:`to_dict` as text; no NaN, no Infinity."""
        return as_text(self.to_dict(command))

    def _layer(self, d: Decision) -> dict[str, Any]:
        data = asdict(d)
        before, after = self.layer_times.get(d.layer, (None, None))
        return {"name": data.pop("layer"), **data, "before_ms": before, "after_ms": after}

    def print(self, console: Console) -> None:
        """Both tables and the notes."""
        console.print(_layer_table(self.decisions))
        if self.groups:
            console.print(_group_table(self.groups))
        first = self.latency[0] if self.latency else None
        console.print(model_table(self.before, self.after, first, self.validation.accuracy))
        console.print(outputs_table(self.validation))
        if self.stages:
            console.print(stages_table(self.stages))
        if self.costliest:
            console.print(Text(_costs(self.costliest)))
        behind = [r.behind_relu for r in self.refits if r.behind_relu is not None]
        if behind:
            gained = sum(b.gain > 0 for b in behind)
            mean = sum(b.gain for b in behind) / len(behind)
            console.print(f"behind the ReLU: {gained} of {len(behind)} layers gained, {mean:.1%} "
                          "less error there on held-out batches", highlight=False)  # fmt: skip
        for pair in self.latency:
            console.print(
                f"batch {pair.batch}: {pair.reference_ms:.3g} ms -> {pair.new_ms:.3g} ms, "
                f"[bold]{pair.speedup:.2f}x[/] (mean of turns in alternation, 95 % interval "
                f"[{pair.speedup_low:.2f}x, {pair.speedup_high:.2f}x]; median of runs "
                f"{pair.median_speedup:.2f}x)",
                highlight=False,
            )
        for note in self.said:
            console.print(Text(f"note: {note}", style="yellow"))
        console.print(Text(", ".join(f"{k} {v:.1f} s" for k, v in self.seconds.items()), "dim"))


def model_table(
    before: Cost, after: Cost, latency: LatencyPair | None, accuracy: Accuracy | None
) -> RenderableType:
    """Before, after and ratio of a model."""
    table = Table(title="model", title_justify="left", box=None, pad_edge=False)
    for column in ("", "before", "after", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    rows = [
        (before.macs_label, before.macs, after.macs),
        ("parameters", before.parameters, after.parameters),
        ("bytes", before.bytes, after.bytes),
    ]
    for name, old, new in rows:
        ratio = f"{new / old:.3f}" if old else "not known" if before.uncounted else ""
        table.add_row(name, _count(old), _count(new), ratio)
    if latency is not None:
        table.add_row(
            f"latency, batch {latency.batch}",
            f"{latency.reference_ms:.3f} ms",
            f"{latency.new_ms:.3f} ms",
            f"{latency.new_ms / latency.reference_ms:.3f}",
        )
    if accuracy is not None:
        table.add_row(
            f"top-1 of {accuracy.samples}",
            f"{accuracy.reference:.2%}",
            f"{accuracy.new:.2%}",
            f"{0.0 - accuracy.drop * 100:+.2f} points",
        )
    return table


def outputs_table(validation: Validation) -> RenderableType:
    """Each output against the original's: what the judge says, and plain differences."""
    verdict = validation.verdict
    if verdict is None or not verdict.readings:
        return _differences_table(validation)
    table = Table(
        title=f"outputs against the original, {validation.samples} samples",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("output", overflow="fold")
    table.add_column("judged as", no_wrap=True)
    for column in ("loss", "SNR"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what stays, 95 % interval", overflow="fold")
    ratios = {o.name: _decibel(o) for o in validation.outputs}
    for r in verdict.readings:
        loss = f"{r.loss.value:.2%}" if math.isfinite(r.loss.value) else "infinite"
        said = "; ".join(filter(None, (kept_in_words(r), figures_in_words(r))))
        ratio = ratios.get(r.reading.output, "")
        table.add_row(Text(short(r.reading.label)), means(r.reading.kind), loss, ratio, said)
    return Group(table, Text())


def _costs(costliest: Sequence[LayerLoss]) -> str:
    """The layers that cost most of the loss, in words."""
    first = costliest[0]
    each = ", ".join(f"{short(c.layer)} {100 * c.loss:.2g}" for c in costliest)
    return (
        f"points that the loss, {first.whole:.2%} on {first.samples} samples, would be less with "
        f"a layer whole: {each}"
    )


def _differences_table(validation: Validation) -> RenderableType:
    """Each output's differences from the original's."""
    table = Table(
        title=f"outputs against the original, {validation.samples} samples",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("output")
    for column in ("relative error", "SNR", "cosine", "same top-1", "in top-5"):
        table.add_column(column, justify="right")
    whole = any(o.equal is not None for o in validation.outputs)
    if whole:
        table.add_column("equal", justify="right")
    for o in validation.outputs:
        row = [
            _figure(o.relative_error), _decibel(o), _figure(o.cosine), _percent(o.top1_agreement),
            _percent(o.top5_agreement),
        ]  # fmt: skip
        table.add_row(Text(o.name), *row, *([_percent(o.equal)] if whole else []))
    return Group(table, Text())


def _layer_table(decisions: Sequence[Decision]) -> RenderableType:
    table = Table(title="layers", title_justify="left", box=None, pad_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("op")
    table.add_column("decision", no_wrap=True)
    for column in ("rank", "error", "MACs", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", style="dim")
    for d in decisions:
        done = d.replaces
        form = "" if f"={d.variant}" in d.method else d.variant
        method = f"{d.method} {form}".strip() if done else d.decision
        table.add_row(
            Text(short(d.layer)),
            d.op,
            method,
            str(d.rank) if done else "",
            f"{d.error:.4f}" if done else "",
            _count(d.macs_before),
            f"{d.macs_after / d.macs_before:.2f}" if d.macs_before else "",
            d.reason,
        )
    return Group(table, Text())


def _group_table(groups: Sequence[GroupDecision]) -> RenderableType:
    table = Table(title="channels", title_justify="left", box=None, pad_edge=False)
    table.add_column("group", overflow="fold")
    table.add_column("decision", no_wrap=True)
    for column in ("channels", "left", "loss"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold", style="dim")
    for g in groups:
        table.add_row(
            Text(short(g.name)),
            g.decision,
            str(g.size),
            str(len(g.kept)) if g.shrinks else "",
            f"{g.loss:.4f}" if g.shrinks else "",
            g.reason,
        )
    return Group(table, Text())


def short(name: str, width: int = 40) -> str:
    """A name that leaves room for the rest of a row; converters write some of 500 letters."""
    if len(name) <= width:
        return name
    half = (width - 3) // 2
    return f"{name[:half]}...{name[-half:]}"


def _finite(data: dict[str, Any]) -> dict[str, Any]:
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in data.items()
    }


def _count(value: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)


def _decibel(output: OutputCheck) -> str:
    if math.isnan(output.snr_db):
        return "" if output.places else "not compared"
    if math.isinf(output.snr_db):
        return "exact" if output.varied and not output.mismatches else "no error seen"
    return f"{output.snr_db:.1f} dB"


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
