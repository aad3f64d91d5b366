"""Response error of each method on each layer, by the part of its MACs that is left.

Every method is fitted twice, to the weights (``metric=identity``) and to the responses on the
calibration samples (``metric=covariance``). Of all its forms and ranks within a part of the layer's
MACs the one of least response error is taken, and judged by the relative response error

    eps(What) = tr((W - What) Sigma (W - What)^T) / tr(W Sigma W^T)

under the moments of the calibration samples and under those of as many others. Layers are replaced
one at a time, in the original network, and nothing is solved again afterwards.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command import Command, Measure
from benchmarks.nets import NETS, Samples
from benchmarks.prepared import prepared
from benchmarks.rows import Cell, Row
from benchmarks.tables import asked, figure, markdown, model, seconds
from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.proposals import cut_candidate, make_choices
from onnx_lowrank.planning.registry import available, parse
from onnx_lowrank.progress import Progress

__all__ = ["COMMAND", "RATIOS", "Case", "begin", "best_within", "cells", "kind_of", "tables"]

_METRICS = ("identity", "covariance")

#: parts of a layer's MACs that are looked at
RATIOS = (0.75, 0.5, 1 / 3, 0.25)

#: errors below count as this much: a geometric mean has no place for zero
_FLOOR = 1e-6

#: what takes many minutes, and is left out where no methods are named
_SLOW = {
    "cifar10_resnet56": {"bicluster", "cp", "monochromatic"},
    "cifar10_vgg_s": {"bicluster", "circulant", "lowrank_sparse", "monochromatic", "tucker2"},
}


@dataclass(frozen=True)
class Case:
    """The best that one method makes of one layer within a part of its MACs.

    Attributes:
        layer: name of the layer.
        ratio: part of the layer's MACs that was allowed.
        macs: part that is left.
        params: part of the parameters that is left.
        variant: form of the method.
        error: relative response error on the calibration samples.
        held_out: the same on other samples.
    """

    layer: str
    ratio: float
    macs: float
    params: float
    variant: str
    error: float
    held_out: float


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model by every method and metric."""
    found = []
    for name in arguments.models:
        methods = arguments.methods or [m for m in _methods() if m not in _SLOW.get(name, ())]
        for method, metric in product(methods, _METRICS):
            options = {"method": method, "metric": metric, "samples": arguments.samples}
            found.append(Cell("layers", name, options))
    return found


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model, which share the moments of both halves of the samples."""
    net = NETS[name]
    one, other = _halves(net.read(), arguments.samples)
    fit, judge = (prepared(net.path, part) for part in (one, other))
    kinds = {la.name: kind_of(la.value, first=number == 0) for number, la in enumerate(fit.layers)}
    samples = {
        "calibration": _count(one),
        "test": _count(other),
    }

    def measure(cell: Cell) -> Row:
        factorization = parse("{method}{{metric={metric}}}".format_map(cell.options))
        assert isinstance(factorization, Factorization)
        start = time.perf_counter()
        choices = make_choices(
            fit.layers, Question([factorization], "macs"), fit.moments, fit.shapes, {}, Progress()
        ).choices
        spent = time.perf_counter() - start
        cases = [
            asdict(case)
            for layer, choice in zip(fit.layers, choices, strict=True)
            for case in _cases(
                layer.value,
                choice,
                factorization,
                (fit.moments[layer.name], judge.moments[layer.name]),
            )
        ]
        figures = {"layers": len(kinds), "seconds": round(spent, 1)}
        return cell.measured(samples, figures, kinds=kinds, cases=cases)

    return measure


def kind_of(layer: Layer, *, first: bool) -> str:
    """``first`` layer, ``dense``, ``1 x 1`` or ``k x k``, with a word where it is grouped."""
    if first:
        return "first"
    if layer.op in ("Gemm", "MatMul"):
        return "dense"
    kind = "k x k" if any(k > 1 for k in layer.geometry.kernel) else "1 x 1"
    return f"{kind}, grouped" if layer.groups > 1 else kind


def best_within(choice: Choice, ratio: float) -> Candidate | None:
    """The candidate of least error within a part of the layer's MACs; None where there is none."""
    found = [c for c in choice.candidates[1:] if c.macs <= ratio * choice.keep.macs]
    return min(found, key=lambda c: (c.error, c.macs), default=None)


def tables(rows: Sequence[Row]) -> str:
    """What rows of one model say, as a table for each kind of layers.

    A cell has the geometric means, over the layers, of the errors fitted to the weights, fitted to
    the responses, and of the latter on other samples; in brackets how many layers have one, where
    not all do. *best in* counts the layers, at each ratio, where no other method in the table,
    fitted to the responses, does better on the other samples.
    """
    kinds: dict[str, str] = rows[0].details["kinds"]
    found = [(row, case) for row in rows for case in _cases_of(row)]
    shown = []
    for kind in dict.fromkeys(kinds.values()):
        layers = [name for name, k in kinds.items() if k == kind]
        own = [(row, case) for row, case in found if case.layer in layers]
        if own:
            title = f"\n{rows[0].model}, {kind}, {len(layers)} layers\n"
            shown.append(f"{title}\n{_table(own, len(layers))}")
    return "\n".join(shown)


def _halves(data: Samples, wanted: int) -> tuple[Samples, Samples]:
    """Calibration samples drawn at random, and as many others.

    Each half has the first sample of the other as its held-out part, to measure shapes on.
    """
    inputs = {k: v for k, v in data.items() if "." not in k}
    count = _count(inputs)
    order = np.random.default_rng(0).permutation(count)
    size = min(wanted, count // 2)
    one, other = order[:size], order[size : 2 * size]

    def half(own: Any, rest: Any) -> Samples:
        held_out = {f"test.{k}": v[rest[:1]] for k, v in inputs.items()}
        return {**{k: v[own] for k, v in inputs.items()}, **held_out}

    return half(one, other), half(other, one)


def _count(data: Samples) -> int:
    return min(len(v) for k, v in data.items() if "." not in k)


def _cases(
    layer: Layer, choice: Choice, factorization: Factorization, moments: tuple[Moments, Moments]
) -> Iterator[Case]:
    chosen = {ratio: best_within(choice, ratio) for ratio in RATIOS}
    errors = {}
    for candidate in {c for c in chosen.values() if c is not None}:
        chain = cut_candidate(layer, candidate, [factorization], moments[0])
        errors[candidate] = [relative_error(layer.stage, chain, m) for m in moments]
    for ratio, best in chosen.items():
        if best is not None:
            macs, params = (
                best.macs / choice.keep.macs, best.parameters / choice.keep.parameters
            )  # fmt: skip
            yield Case(layer.name, ratio, macs, params, best.variant, *errors[best])


def _cases_of(row: Row) -> list[Case]:
    return [Case(**case) for case in row.details["cases"]]


def _table(found: Sequence[tuple[Row, Case]], layers: int) -> str:
    wins = _wins(found)
    lines = []
    for method, group in groupby(found, key=lambda pair: pair[0].options["method"]):
        own = list(group)
        errors = [_cell([p for p in own if p[1].ratio == ratio], layers) for ratio in RATIOS]
        best = " / ".join(str(wins.get((ratio, method), 0)) for ratio in RATIOS)
        spent = {row.options["metric"]: row.figures["seconds"] for row, _ in own}
        lines.append([f"`{method}`", *errors, best, " / ".join(f"{s:.0f}" for s in spent.values())])
    return markdown(["method", *(f"at {r:.2f}" for r in RATIOS), "best in", "seconds"], lines)


def _wins(found: Sequence[tuple[Row, Case]]) -> Mapping[tuple[float, str], int]:
    """Layers where a method, fitted to the responses, has the least error on other samples."""
    best: dict[tuple[float, str], tuple[float, str]] = {}
    for row, case in found:
        key = case.ratio, case.layer
        if row.options["metric"] == "covariance" and (
            key not in best or case.held_out < best[key][0]
        ):
            best[key] = case.held_out, row.options["method"]
    wins: dict[tuple[float, str], int] = {}
    for (ratio, _), (_, method) in best.items():
        wins[ratio, method] = wins.get((ratio, method), 0) + 1
    return wins


def _cell(found: Sequence[tuple[Row, Case]], layers: int) -> str:
    weights, responses = (
        [case for row, case in found if row.options["metric"] == m] for m in _METRICS
    )
    if not responses:
        return "-"
    some = f" ({len(responses)})" if len(responses) < layers else ""
    other = _mean([c.held_out for c in responses])
    first = _mean([c.error for c in weights]) if weights else "-"
    return f"{first} / {_mean([c.error for c in responses])} / {other}{some}"


def _mean(errors: Sequence[float]) -> str:
    return f"{math.exp(np.mean(np.log(np.maximum(errors, _FLOOR)))):.2g}"


def _methods() -> list[str]:
    """Names of the factorizations that know both metrics."""
    return [
        name for name, cls in available().items()
        if issubclass(cls, Factorization) and "metric" in {f.name for f in fields(cls)}
    ]  # fmt: skip


def _close(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    for _, own in groupby(rows, key=lambda row: row.model):
        print(tables(list(own)))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", nargs="+", default=[], choices=_methods(), metavar="METHOD",
        help="factorizations; all but the slowest by default",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=500,
        help="calibration samples, and as many others to judge by; default: %(default)s",
    )  # fmt: skip


COMMAND = Command(
    name="layers",
    summary="Compare the response error of each method on each layer, by the MACs left.",
    models=("cifar10_resnet20", "cifar10_resnet56", "cifar10_vgg_s"),
    choices=list(NETS),
    columns=(
        model(),
        asked("method", "method", "`{}`"),
        asked("metric", "metric"),
        figure("layers", "layers", "{:.0f}"),
        seconds(),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    close=_close,
)
