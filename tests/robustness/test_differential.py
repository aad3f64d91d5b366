"""Random graphs: exact chains change nothing, budgets are kept, reported errors are the true ones.

Every run tries a sample; ``pytest -m full`` goes on to 215 graphs, and ``pytest -m slow`` to
10,000, or to ``ONNX_LOWRANK_GRAPHS``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passes import FoldBatchnorm
from onnx_lowrank.passkit.base import Decomposition, Factorization
from onnx_lowrank.planning.refit_modes import REPAIRS
from onnx_lowrank.planning.registry import parse_list
from tests import fixtures_models as fm
from tests.conftest import Count
from tests.robustness.random_graphs import OPSETS, Case, random_graph
from tests.support import Array, bias_of, random_moments, relative, rng

#: last seed of each kind behind the marker slow, and seeds of one test
MANY, PIECE = int(os.environ.get("ONNX_LOWRANK_GRAPHS", "10000")), 20
#: passes that take most of the time, each in one of so many budgets
SELDOM = {"bicluster": 40, "cp": 5, "monochromatic": 3, "lowrank_sparse": 3}
#: decompositions that lose nothing at their largest rank
EXACT: list[Factorization] = parse_list(
    "svd,spatial_svd,spatial_svd{split=vh},channel_svd,tucker2,tensor_train,recurrent_svd,"
    "lowrank_sparse,circulant"
).factorizations
#: the others: their chains are held against the kernels that they say they are
OTHERS: list[Factorization] = parse_list("cp,cp{form=three},monochromatic,bicluster").factorizations
LEAST = 1e-4

Outputs = dict[str, Any]


def chosen(random: np.random.Generator, *values: Any) -> Any:
    return values[int(random.integers(len(values)))]


# full rank


def full_rank(seed: int, count: Count) -> None:
    """Fold, take every layer apart without loss, run."""
    case, random = random_graph(seed), rng(seed, 1)
    x = case.feed(seed)
    expected = fm.run(case.proto, x)
    graph = Graph(Model(case.proto))
    for edit in FoldBatchnorm().run(graph):
        count("differential, folded", edit.what.partition(" ")[0])
    forms = {
        layer.name: form_of(layer.value, EXACT, seed, random) for layer in find_layers(graph)[0]
    }
    for layer in find_layers(graph)[0]:
        found = forms[layer.name]
        if found is None:
            count("differential, full rank", "left alone")
            continue
        factorization, form = found
        apply_chain(graph, layer, form.cut(form.max_rank))  # type: ignore[attr-defined]
        count("differential, full rank", f"{factorization.name} {layer.op}")
    assert_same(case.proto, graph.to_model().proto, x, expected)


def form_of(
    layer: Layer, passes: list[Factorization], seed: int, random: np.random.Generator
) -> tuple[Factorization, Decomposition] | None:
    """Some form of some pass that takes the layer, fitted to weights or to responses."""
    able = [p for p in passes if p.skips(layer) is None]
    if not able:
        return None
    moments = chosen(random, Moments(), random_moments(layer, seed))
    factorization = chosen(random, *able)
    return factorization, chosen(random, *factorization.propose(layer, moments))


def composed(seed: int, count: Count) -> None:
    """Cut every layer to any rank; the chain against one node with the kernel that it is."""
    case, random = random_graph(seed), rng(seed, 2)
    x = case.feed(seed)
    graphs = Graph(Model(case.proto)), Graph(Model(case.proto))
    layers = [find_layers(graph)[0] for graph in graphs]
    chains: dict[str, Chain] = {}
    for layer in layers[0]:
        found = form_of(layer.value, [*OTHERS, *EXACT], seed, random)
        if found is not None and (ranks := list(found[1].ranks())):
            chains[layer.name] = found[1].cut(chosen(random, *ranks))
            count("differential, any rank", f"{found[0].name} {layer.op}")
    for one, other in zip(*layers, strict=True):
        if one.name in chains:
            chain, stage = chains[one.name], one.stage
            kernel = chain.compose().reshape(stage.weight.shape)
            whole = Chain((type(stage)(kernel, bias_of(chain), stage.geometry),))
            apply_chain(graphs[0], one, chain)
            apply_chain(graphs[1], other, whole)
    expected = fm.run(graphs[1].to_model().proto, x)
    assert_same(case.proto, graphs[0].to_model().proto, x, expected)


def assert_same(old: ModelProto, new: ModelProto, x: dict[str, Array], expected: Outputs) -> None:
    onnx.checker.check_model(new, full_check=True)
    assert_contract(old, new)
    for name, values in fm.run(new, x).items():
        assert relative(expected[name], values) < LEAST, name


def assert_contract(old: ModelProto, new: ModelProto) -> None:
    """Names, types and shapes outside, and the versions, are those of the original."""
    assert list(new.graph.input) == list(old.graph.input)
    assert list(new.graph.output) == list(old.graph.output)
    assert list(new.opset_import) == list(old.opset_import)
    assert new.ir_version == old.ir_version


# budgets


def budgeted(seed: int, count: Count) -> None:
    """Compress to some budget by some passes, then measure what the report says."""
    case, random = random_graph(seed), rng(seed, 3)
    metric, ratio = chosen(random, "macs", "params"), round(float(random.uniform(0.4, 0.9)), 2)
    able = [p.spec for p in (*EXACT, *OTHERS) if random.integers(SELDOM.get(p.name, 1)) == 0]
    passes = random.permutation(able)[: chosen(random, 1, 3, 4, 5)].tolist()
    passes += ["fold_batchnorm"] * int(random.integers(5) > 0)
    if random.random() < 0.25:
        passes.append(chosen(random, "prune_channels", "prune_channels{chain=top_down}",
                             "prune_channels{method=l2}"))  # fmt: skip
    held_out = {"x": case.samples(6, seed + 1)}
    before = case.proto.SerializeToString()
    data = {"x": case.samples(int(random.integers(8, 17)), seed), "test.x": held_out["x"]}
    options = {"calib": data, "passes": passes, "force": True,
               "repair": chosen(random, *REPAIRS), "effort": "normal"}  # fmt: skip
    try:
        result = fm.quick_compress(case.proto, target=f"{metric}={ratio}", **options)
        verdict = "kept"
    except BudgetError as error:
        reach = re.search(r"below (0\.\d+) of the original", str(error))
        if reach is None or (least := float(reach[1]) + 0.001) >= 1:
            count("differential, budgets", "out of reach")
            return
        assert least > ratio
        ratio, verdict = round(least, 4), "kept, the least that can be reached"
        result = fm.quick_compress(case.proto, target=f"{metric}={ratio}", **options)
    assert case.proto.SerializeToString() == before
    report, new = result.report, result.model
    onnx.checker.check_model(new, full_check=True)
    assert_contract(case.proto, new)
    for cost, model in ((report.before, case.proto), (report.after, new)):
        counted = inspect(model).cost
        parts = (cost.macs, cost.parameters)
        assert parts[1] == counted.parameters
        if (case.batch or 1) == 1:  # else inspect counts the whole of the fixed batch
            assert parts == (counted.macs, counted.parameters)
    left = {"macs": report.macs_ratio, "params": report.after.parameters / report.before.parameters}
    assert left[metric] <= ratio
    pairs = zip(batches(case, case.proto, held_out), batches(case, new, held_out), strict=True)
    both = {o.name: ([], []) for o in report.validation.outputs}
    for expected, found in pairs:
        for name, (a, b) in both.items():
            a.append(expected[name])
            b.append(found[name])
    for output in report.validation.outputs:
        error = relative(*map(np.concatenate, both[output.name]))
        assert abs(output.relative_error - error) < LEAST + 1e-3 * error, output
    done = {d.method.partition("{")[0] for d in report.decisions if d.decision == "factorize"}
    done |= {"prune_channels"} if any(g.kept for g in report.groups) else set()
    count("differential, budgets", verdict if done else "kept without a cut")
    for name in done:
        count("differential, methods in budgets", name)


def batches(case: Case, proto: ModelProto, x: dict[str, Array]) -> list[Outputs]:
    size = case.batch or 1
    return [fm.run(proto, {"x": x["x"][i : i + size]}) for i in range(0, len(x["x"]), size)]


KINDS: dict[str, Callable[[int, Count], None]] = {
    "full rank": full_rank, "any rank": composed, "budget": budgeted
}  # fmt: skip
#: last seed of each kind in every run, and behind the marker full
QUICK = {"full rank": 20, "any rank": 5, "budget": 5}
FULL = {"full rank": 160, "any rank": 40, "budget": 15}


def pieces(
    first: dict[str, int], last: dict[str, int], size: int = PIECE
) -> list[tuple[str, range]]:
    """The kind and the seeds of every test between two tiers."""
    return [
        (kind, range(s, min(s + size, last[kind])))
        for kind in KINDS
        for s in range(first[kind], last[kind], size)
    ]


def test_graphs_are_varied() -> None:
    """What the others run on: every kind of node, and a function of the seed alone."""
    cases = [random_graph(seed) for seed in range(60)]
    ops = {n.op_type for case in cases for n in case.proto.graph.node}
    assert ops >= {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "Concat",
                   "MaxPool", "AveragePool", "GRU", "LSTM", "Mul"}  # fmt: skip
    assert {case.proto.opset_import[0].version for case in cases} == set(OPSETS)
    assert {len(case.shape) for case in cases} == {2, 3, 4}
    assert any(len(case.proto.graph.output) > 1 for case in cases)
    assert random_graph(3).proto == cases[3].proto
    for case in cases:
        onnx.checker.check_model(case.proto, full_check=True)


def check(kind: str, seeds: range, count: Count) -> None:
    failed = {}
    for seed in seeds:
        try:
            KINDS[kind](seed, count)
        except Exception as error:  # of all of them, not of the first
            failed[seed] = f"{type(error).__name__}: {error}".partition("\n")[0]
    assert not failed


@pytest.mark.parametrize(("kind", "seeds"), pieces(dict.fromkeys(KINDS, 0), QUICK), ids=str)
def test_a_sample_of_graphs(kind: str, seeds: range, count: Count) -> None:
    check(kind, seeds, count)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "seeds"), pieces(QUICK, FULL), ids=str)
def test_graphs(kind: str, seeds: range, count: Count) -> None:
    check(kind, seeds, count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "seeds"), pieces(FULL, dict.fromkeys(KINDS, MANY), 10 * PIECE), ids=str
)
def test_many_graphs(kind: str, seeds: range, count: Count) -> None:
    check(kind, seeds, count)
