"""How much error each method costs on each layer, at every rank: tables, JSON, one picture.

The figures are those that a plan is made of: relative response error ``eps`` (a ratio of squared
norms) against the part of the layer's MACs that is left, each layer replaced alone, before refit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_lowrank.analysis.preparation import (
    measured_shapes,
    moments_of,
    silent_notes,
)
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.chains.chain import Rank
from onnx_lowrank.engine.options import CurvesOptions
from onnx_lowrank.errors import OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.options import documented, from_keywords
from onnx_lowrank.passkit.runner import canonicalise
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import Candidate
from onnx_lowrank.planning.layer_globs import check_globs, matches
from onnx_lowrank.planning.proposals import make_choices
from onnx_lowrank.planning.registry import available, parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.report.plots import Line, check_picture, draw_curves
from onnx_lowrank.report.report import short
from onnx_lowrank.samples.dataset import input_specs, load_dataset
from onnx_lowrank.samples.made_up import check_shapes, made_up
from onnx_lowrank.samples.mask_trial import with_mask
from onnx_lowrank.samples.row_trial import RowTrial

__all__ = ["Curve", "Curves", "Point", "curves"]

#: parts of a layer's MACs, and the error, that the table looks at
RATIOS, ERROR = (0.75, 0.5, 1 / 3, 0.25), 0.05


@dataclass(frozen=True)
class Point:
    """One rank of one form of a method.

    Attributes:
        rank: channels a group between the stages, one number or one for each place.
        macs: MACs left, as a part of the layer's.
        params: parameters left, as a part of the layer's.
        error: relative response error.
    """

    rank: Rank
    macs: float
    params: float
    error: float


@dataclass(frozen=True)
class Curve:
    """One layer by one form of a method.

    Attributes:
        layer: name of the layer.
        method: spec of the pass.
        variant: which form of the method; empty where there is only one.
        points: by MACs, fewest first.
    """

    layer: str
    method: str
    variant: str
    points: tuple[Point, ...]

    @property
    def form(self) -> str:
        """Method and variant, for people."""
        return f"{self.method} {self.variant}".strip()

    @property
    def frontier(self) -> tuple[Point, ...]:
        """The points that no cheaper one beats; of pairs of ranks most are no use."""
        least, kept = math.inf, []
        for p in self.points:
            if p.error < least:
                least = p.error
                kept.append(p)
        return tuple(kept)

    def error_at(self, macs: float) -> float | None:
        """Least error with at most this part of the MACs; None if no rank is that cheap."""
        return min((p.error for p in self.points if p.macs <= macs), default=None)

    def macs_at(self, error: float) -> float | None:
        """Least part of the MACs with at most this error; None if no rank is that good."""
        return min((p.macs for p in self.points if p.error <= error), default=None)


@dataclass(frozen=True)
class Curves:
    """All curves of a model.

    Attributes:
        curves: in the order of layers, then of passes.
        macs: of one sample, for each layer that was looked at, in topological order.
        skipped: why a layer has no curve, by its name.
        samples: calibration samples; 0 in weight space.
        seed: of all random draws.
        notes: what a reader should know besides.
    """

    curves: tuple[Curve, ...]
    macs: dict[str, int]
    skipped: dict[str, str]
    samples: int
    seed: int
    notes: tuple[str, ...]

    def of(self, layer: str) -> list[Curve]:
        """The curves of one layer."""
        return [c for c in self.curves if c.layer == layer]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as printed by ``--json``."""
        layers = []
        for name, macs in self.macs.items():
            found = [asdict(c) for c in self.of(name)]
            for curve in found:
                del curve["layer"]
            layers.append({"name": name, "macs": macs, "curves": found})
        return {
            "schema": 1,
            "samples": self.samples,
            "seed": self.seed,
            "layers": layers,
            "skipped": self.skipped,
            "notes": list(self.notes),
        }

    def print(self, console: Console) -> None:
        """Errors at some parts of the MACs, the best of each layer in bold."""
        table = Table(title=f"{self._quantity} by the part of a layer's MACs that is left",
                      title_justify="left", box=None, pad_edge=False)  # fmt: skip
        table.add_column("layer", overflow="fold")
        table.add_column("MACs", justify="right")
        table.add_column("method", no_wrap=True)
        for ratio in RATIOS:
            table.add_column(f"at {ratio:.2f}", justify="right", no_wrap=True)
        table.add_column(f"error {ERROR} at", justify="right", no_wrap=True)
        for layer, macs in self.macs.items():
            found = self.of(layer)
            rows = [[*(c.error_at(r) for r in RATIOS), c.macs_at(ERROR)] for c in found]
            best = [min((v for v in col if v is not None), default=None)
                    for col in zip(*rows, strict=True)]  # fmt: skip
            for i, (curve, row) in enumerate(zip(found, rows, strict=True)):
                cells = [
                    Text("-" if v is None else f"{v:.4f}" if k < len(RATIOS) else f"{v:.2f}",
                         "bold" if v is not None and v == best[k] and len(rows) > 1 else "")
                    for k, v in enumerate(row)
                ]  # fmt: skip
                first = (Text(short(layer)), f"{macs:,}") if i == 0 else ("", "")
                table.add_row(*first, Text(curve.form), *cells)
        console.print(table)
        self.print_notes(console)

    def print_notes(self, console: Console) -> None:
        """Why layers have no curve, and what a reader should know besides."""
        for layer, reason in self.skipped.items():
            console.print(Text(f"{short(layer)}: {reason}", "dim"))
        for note in self.notes:
            console.print(Text(f"note: {note}", "yellow"))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw a panel for each layer and the frontier of each form, PNG or SVG by the suffix.

        Raises:
            OptionError: another suffix, no curve to draw, or matplotlib is missing.
            ModelError: the file cannot be written.
        """
        check_picture(path)
        if not self.curves:
            raise OptionError("no layer can be taken apart; there is nothing to draw")
        panels = [
            (
                f"{short(layer, 30)}  ({_rounded(macs)} MACs)",
                [
                    Line(c.method, c.variant, [(p.macs, p.error) for p in c.frontier])
                    for c in self.of(layer)
                ],
            )
            for layer, macs in self.macs.items()
            if self.of(layer)
        ]
        draw_curves(path, panels, "MACs left, part of the layer", self._quantity)

    @property
    def _quantity(self) -> str:
        return "relative response error" if self.samples else "relative error of the weights"


@documented(CurvesOptions)
def curves(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    *,
    progress: Progress | None = None,
    **keywords: Any,
) -> Curves:
    """Error against MACs of every layer by every method, at every rank that saves something.

    Args:
        model: path or ModelProto; it is not changed.
        progress: told of each step.
        **keywords: options by name:
            {options}

    Raises:
        OptionError: no such pass or layer, or a shape is needed.
        ModelError: the model cannot be read.
        DataError: the data does not fit the model.
    """
    options = from_keywords(CurvesOptions, keywords)
    calib, input_shapes = options.data.calib, options.data.shapes
    samples, seed = options.draw.samples, options.draw.seed
    layers, passes, images = options.layers.layers, options.layers.passes, options.images.given
    progress = progress or Progress()
    chosen = [p() for p in available().values()] if passes is None else passes
    rewrites, factorizations = parse_list(chosen)[:2]
    if not factorizations:
        raise OptionError("no factorization among the passes; add spatial_svd, for one")
    runtime, source = options.runtime.runtime(), load(model)
    specs, trial = input_specs(source), RowTrial(source, runtime)
    calibration = None
    notes = ["no calibration data: errors are those of the weights, not of the responses; "
             "give --calib to see what the model's own data makes of them"]  # fmt: skip
    if calib is not None:
        calibration = load_dataset(
            calib, specs, samples=samples, seed=seed, images=images, trial=trial
        )
        calibration, masked = with_mask(calibration, source, runtime, options.padding)
        notes = [*calibration.notes, *([masked] if masked else [])]
        check_shapes(specs, input_shapes, calibration)
    looked_at = calibration
    if looked_at is None:
        looked_at = load_dataset(made_up(specs, input_shapes, seed, 1), specs, trial=trial)

    canonical = canonicalise(source, rewrites)
    graph = Graph(canonical)
    found, others = find_layers(graph)
    globs = [layers] if isinstance(layers, str) else list(layers)
    names = [x.name for x in found] + [x.name for x in others]
    check_globs("--layer", globs, names)
    named = {n for n in names if not globs or matches(n, globs)}
    found = [layer for layer in found if layer.name in named]
    shapes = measured_shapes(canonical, graph, found, looked_at, runtime)
    skipped = {o.name: o.reason for o in others if o.name in named}
    unknown = [layer.name for layer in found if layer.input not in shapes]
    skipped |= dict.fromkeys(unknown, "the shape of its input is not known")
    lookups = [layer.name for layer in found if layer.value.lookup]
    skipped |= dict.fromkeys(lookups, "it multiplies nothing, so there is no part of its MACs")
    found = [layer for layer in found if layer.name not in {*unknown, *lookups}]
    moments = moments_of(graph, found, calibration, shapes, Streaming(runtime, seed, progress))
    notes += silent_notes(moments, len(found))
    proposals = make_choices(found, Question(factorizations, "macs"), moments, shapes, {}, progress)
    made: list[Curve] = []
    for choice in proposals.choices:
        forms: dict[tuple[str, str], list[Candidate]] = {}
        for c in choice.candidates[1:]:
            forms.setdefault((c.method, c.variant), []).append(c)
        made += [_curve(choice.layer, form, cs, choice.keep) for form, cs in forms.items()]
        if not forms:
            skipped[choice.layer] = "; ".join(proposals.skips[choice.layer])
    return Curves(
        tuple(made),
        {choice.layer: choice.keep.macs for choice in proposals.choices},
        skipped,
        0 if calibration is None else len(calibration),
        seed,
        tuple(notes),
    )


def _rounded(macs: int) -> str:
    return f"{macs / 1e6:.3g} M" if macs >= 1e5 else f"{macs / 1e3:.3g} k"


def _curve(
    layer: str, form: tuple[str, str], candidates: Sequence[Candidate], keep: Candidate
) -> Curve:
    points = [
        Point(c.rank, c.macs / keep.macs, c.parameters / keep.parameters, c.error)
        for c in candidates
    ]
    return Curve(layer, *form, tuple(sorted(points, key=lambda p: (p.macs, p.error))))
