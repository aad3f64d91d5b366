"""``python -m benchmarks.layers``: response error of each method on each layer, by MACs left.

Every method is fitted twice, to the weights (``metric=identity``) and to the responses on the
calibration samples (``metric=covariance``). Of all its forms and ranks within a part of the layer's
MACs the one of least response error is taken, and judged by the relative response error

    eps(What) = tr((W - What) Sigma (W - What)^T) / tr(W Sigma W^T)

under the moments of the calibration samples and under those of as many others. Layers are replaced
one at a time, in the original network, and nothing is solved again afterwards.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, product
from pathlib import Path

import numpy as np

from benchmarks.models import MODELS, Benchmark
from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.analysis.preparation import measured_shapes, moments_of
from onnx_lowrank.engine.curves import RATIOS
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, find_layers
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.passkit.runner import canonicalise
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.proposals import cut_candidate, make_choices
from onnx_lowrank.planning.registry import available, parse
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import input_specs, load_dataset

__all__ = [
    "METRICS",
    "Case",
    "Study",
    "best_within",
    "kind_of",
    "parser",
    "study",
    "tables",
]

METRICS = ("identity", "covariance")

#: errors below count as this much: a geometric mean has no place for zero
FLOOR = 1e-6

#: what takes many minutes, and is left out where no methods are named
SLOW = {
    "cifar10_resnet56": {"bicluster", "cp", "monochromatic"},
    "cifar10_vgg_s": {"bicluster", "circulant", "lowrank_sparse", "monochromatic", "tucker2"},
}

DEFAULT_MODELS = ("cifar10_resnet20", "cifar10_resnet56", "cifar10_vgg_s")


@dataclass(frozen=True)
class Case:
    """The best that one method makes of one layer within a part of its MACs.

    Attributes:
        layer: its name.
        kind: see :func:`kind_of`.
        method: name of the pass.
        metric: what it was fitted to, one of :data:`METRICS`.
        ratio: part of the layer's MACs that was allowed.
        macs: part that is left.
        params: part of the parameters that is left.
        variant: which form of the method.
        error: relative response error on the calibration samples.
        held_out: the same on other samples.
    """

    layer: str
    kind: str
    method: str
    metric: str
    ratio: float
    macs: float
    params: float
    variant: str
    error: float
    held_out: float


@dataclass(frozen=True)
class Study:
    """All cases of one model.

    Attributes:
        model: its name.
        layers: kinds of its layers, by name.
        cases: in the order of methods, metrics, layers, ratios.
        seconds: to plan every layer at every rank, by method and metric.
    """

    model: str
    layers: dict[str, str]
    cases: tuple[Case, ...]
    seconds: dict[str, dict[str, float]]


def study(
    name: str,
    benchmark: Benchmark,
    methods: Sequence[str],
    samples: int = 500,
    seed: int = 0,
) -> Study:
    """Every method on every layer.

    Args:
        name: of the model.
        benchmark: the model and its data.
        methods: names of factorizations.
        samples: to calibrate on, and as many others to judge by; half of all where there are
            fewer than twice as many.
        seed: of their choice.
    """
    source = load(benchmark.path)
    canonical = canonicalise(source, [parse("fold_batchnorm")])  # type: ignore[list-item]
    graph, runtime, progress = Graph(canonical), Runtime(threads=1), Progress()
    layers, _ = find_layers(graph)
    inputs = {k: v for k, v in benchmark.read().items() if "." not in k}
    count = len(next(iter(inputs.values())))
    order = np.random.default_rng(seed).permutation(count)
    size = min(samples, count // 2)
    one, other = (
        load_dataset({k: v[part] for k, v in inputs.items()}, input_specs(source))
        for part in (order[:size], order[size : 2 * size])
    )
    shapes = measured_shapes(canonical, graph, layers, one, runtime)
    fit, judge = (
        moments_of(graph, layers, part, runtime, shapes, seed, progress) for part in (one, other)
    )
    kinds = {layer.name: kind_of(layer, number == 0) for number, layer in enumerate(layers)}
    cases: list[Case] = []
    seconds: dict[str, dict[str, float]] = {}
    for method, metric in product(methods, METRICS):
        factorization = parse(f"{method}{{metric={metric}}}")
        assert isinstance(factorization, Factorization)
        start = time.perf_counter()
        choices = make_choices(layers, [factorization], fit, shapes, "macs", {}, progress).choices
        seconds.setdefault(method, {})[metric] = round(time.perf_counter() - start, 1)
        for layer, choice in zip(layers, choices, strict=True):
            moments = fit[layer.name], judge[layer.name]
            cases += _cases(
                layer, kinds[layer.name], choice, factorization, method, metric, moments
            )
    return Study(name, kinds, tuple(cases), seconds)


def kind_of(layer: Layer, first: bool) -> str:
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


def tables(found: Study) -> str:
    """The study as markdown, one table for each kind of layers."""
    some = {case.kind for case in found.cases}
    kinds = [kind for kind in dict.fromkeys(found.layers.values()) if kind in some]
    return "\n".join(_table(found, kind) for kind in kinds)


def _cases(
    layer: Layer,
    kind: str,
    choice: Choice,
    factorization: Factorization,
    method: str,
    metric: str,
    moments: tuple[Moments, Moments],
) -> Iterable[Case]:
    chosen = {ratio: best_within(choice, ratio) for ratio in RATIOS}
    errors = {}
    for candidate in {c for c in chosen.values() if c is not None}:
        chain = cut_candidate(layer, candidate, [factorization], moments[0])
        errors[candidate] = [relative_error(layer.stage, chain, m) for m in moments]
    for ratio, best in chosen.items():
        if best is not None:
            yield Case(
                layer.name, kind, method, metric, ratio,
                best.macs / choice.keep.macs, best.parameters / choice.keep.parameters,
                best.variant, *errors[best],
            )  # fmt: skip


def _table(found: Study, kind: str) -> str:
    layers = [name for name, k in found.layers.items() if k == kind]
    cases = [c for c in found.cases if c.layer in layers]
    wins = _wins(cases)
    names = ["method", *(f"at {r:.2f}" for r in RATIOS), "best in", "seconds"]
    lines = [
        f"\n{found.model}, {kind}, {len(layers)} layers\n",
        f"| {' | '.join(names)} |\n|{'---|' * len(names)}",
    ]
    for method, own in groupby(cases, key=lambda c: c.method):
        own_cases = list(own)
        errors = [_cell([c for c in own_cases if c.ratio == r], len(layers)) for r in RATIOS]
        best = " / ".join(str(wins.get((r, method), 0)) for r in RATIOS)
        seconds = " / ".join(f"{s:.0f}" for s in found.seconds[method].values())
        lines.append(f"| {' | '.join([f'`{method}`', *errors, best, seconds])} |")
    return "\n".join(lines)


def _wins(cases: Iterable[Case]) -> Mapping[tuple[float, str], int]:
    """Layers where a method, fitted to the responses, has the least error on other samples."""
    best: dict[tuple[float, str], Case] = {}
    for case in cases:
        key = case.ratio, case.layer
        if case.metric == "covariance" and (key not in best or case.held_out < best[key].held_out):
            best[key] = case
    wins: dict[tuple[float, str], int] = {}
    for (ratio, _), case in best.items():
        wins[ratio, case.method] = wins.get((ratio, case.method), 0) + 1
    return wins


def _cell(cases: Sequence[Case], layers: int) -> str:
    """Weights, responses and responses on other samples, and how many layers if not all."""
    weights, responses = ([c for c in cases if c.metric == m] for m in METRICS)
    if not responses:
        return "-"
    some = f" ({len(responses)})" if len(responses) < layers else ""
    other = _mean([c.held_out for c in responses])
    first = _mean([c.error for c in weights]) if weights else "-"
    return f"{first} / {_mean([c.error for c in responses])} / {other}{some}"


def _mean(errors: Sequence[float]) -> str:
    return f"{math.exp(np.mean(np.log(np.maximum(errors, FLOOR)))):.2g}"


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    made.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS), choices=MODELS)
    made.add_argument("--methods", nargs="+", default=[], choices=_methods())
    made.add_argument("--samples", type=int, default=500)
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/layers.json"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    studies = []
    for name in arguments.models:
        if not MODELS[name].path.is_file():
            print(f"\n{name}: not at hand")
            continue
        methods = arguments.methods or [m for m in _methods() if m not in SLOW.get(name, ())]
        studies.append(study(name, MODELS[name], methods, arguments.samples))
        print(tables(studies[-1]), flush=True)
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps([asdict(s) for s in studies], indent=1))


def _methods() -> list[str]:
    """Factorizations that know both metrics."""
    return [
        name for name, cls in available().items()
        if issubclass(cls, Factorization) and "metric" in {f.name for f in fields(cls)}
    ]  # fmt: skip


if __name__ == "__main__":
    main()
