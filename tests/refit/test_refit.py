from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Destination, Layer, find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.candidates import Candidate
from onnx_lowrank.planning.proposals import cut_candidate
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.refit import shared
from onnx_lowrank.refit.refit import Manner, Refit, refit
from onnx_lowrank.refit.regression import RIDGES, _least, solution
from onnx_lowrank.refit.stepwise import Walker
from onnx_lowrank.refit.task import LazyStage, Task
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm

Cut = Callable[[Stage, Moments], Chain]
PASSES = parse_list("svd,spatial_svd,channel_svd")[1]
SEEN, UNSEEN = fm.pictures(100, seed=1), fm.pictures(40, seed=2)


def keep(stage: Stage, _: Moments) -> Chain:
    return Chain((stage,))


def halves(layer: Layer, rank: int | None) -> Cut:
    """Cuts a layer by channel_svd at ``rank``; at all of its outputs if None."""

    def cut(stage: Stage, moments: Moments) -> Chain:
        wanted = stage.outputs if rank is None else rank
        c = Candidate("channel_svd", "spatial_first", wanted, 0.0, 0, 0, 0, 10**9)
        return cut_candidate(layer.with_stage(stage), c, PASSES, moments)

    return cut


@dataclass
class Case:
    """A net whose layers are replaced by chains."""

    proto: ModelProto
    cuts: dict[str, int | None]
    kept: tuple[str, ...] = ()
    tasks: list[Task] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.original = Graph(load(self.proto))
        self.graph = Graph(load(self.proto))
        for layer in find_layers(self.graph)[0]:
            if layer.name in self.cuts:
                cut = halves(layer.value, self.cuts[layer.name])
            elif layer.name in self.kept:
                cut = keep
            else:
                continue
            stage, own = layer.stage, LazyStage.of(layer)
            written = apply_chain(self.graph, layer, cut(stage, Moments()))
            self.tasks.append(Task(written, own, cut, layer.input, own, layer.input))

    def error(self, x: fm.AnyArray = UNSEEN) -> float:
        """Of the output against the original's."""
        new = fm.run(self.graph.to_model().proto, {"x": x})["y"]
        return fm.relative(new, fm.run(self.proto, {"x": x})["y"])

    def refit(
        self,
        x: fm.AnyArray = SEEN,
        memory: int = 10**9,
        seed: int = 0,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Refit]:
        return refit(
            self.original, self.graph, self.tasks, fm.dataset(self.proto, x),
            Streaming(fm.ONE_THREAD, seed, progress or Progress(), memory),
            Manner(**{"size": 8, **options}),
        )  # fmt: skip


CONVS = tuple(f"conv{i}" for i in range(4))


def compressed(rank: int = 4, **options: Any) -> Case:
    return Case(fm.residual_net(**options), dict.fromkeys(CONVS[:3], rank), kept=CONVS[3:])


# what it is for


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_full_rank_stays_what_it_was(bias: bool) -> None:
    case = Case(fm.residual_net(bias=bias), dict.fromkeys(CONVS))
    assert case.error() < 1e-5
    done = case.refit()
    assert case.error() < 1e-4
    assert all(r.error_after < 1e-6 for r in done)


@pytest.mark.parametrize("rank", [4, 8])
def test_refit_lowers_the_error_on_data_that_it_did_not_see(rank: int) -> None:
    case = compressed(rank)
    before = case.error()
    done = case.refit()
    assert [r.layer for r in done] == list(CONVS)
    assert case.error() < 0.8 * before


def test_kept_layers_repair_what_is_before_them() -> None:
    alone = Case(fm.residual_net(), {"conv0": 4})
    alone.refit()
    repaired = Case(fm.residual_net(), {"conv0": 4}, kept=CONVS[1:])
    done = repaired.refit()
    assert repaired.error() < 0.95 * alone.error()
    for r in done[1:]:
        assert r.error_after < r.error_before
        assert np.isfinite(r.ridge)


def doubtful_skip() -> ModelProto:
    """``y = conv1(relu(h)) + h``: the skip branch carries the error of the layer before it."""
    rng = np.random.default_rng(3)
    weights = {
        "w0": fm.float32(rng.standard_normal((12, 3, 3, 3))),
        "w1": fm.float32(0.1 * rng.standard_normal((12, 12, 3, 3))),
        "c0": fm.float32(rng.standard_normal(12)),
        "c1": fm.float32(rng.standard_normal(12)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w0", "c0"], ["h"], name="conv0", pads=[1] * 4),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "w1", "c1"], ["b"], name="conv1", pads=[1] * 4),
        helper.make_node("Add", ["b", "h"], ["y"], name="add"),
    ]
    shape: list[int | str] = ["N", 3, 7, 7]
    return fm.build(nodes, {"x": shape}, {"y": ["N", 12, 7, 7]}, weights)


def test_the_residual_sum_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = Case(doubtful_skip(), {"conv0": 6}, kept=("conv1",))
    before = summed.error()
    summed.refit()
    branch = Case(doubtful_skip(), {"conv0": 6}, kept=("conv1",))
    monkeypatch.setattr(shared, "destination", lambda _, layer: Destination(layer.output, ()))
    branch.refit()
    assert summed.error() < 0.9 * branch.error()
    assert summed.error() < 0.9 * before


# edges


def test_a_layer_without_bias_gets_none() -> None:
    case = compressed(bias=False)
    before = case.error()
    inputs = [len(n.inputs) for n in case.graph.nodes if n.op == "Conv"]
    case.refit()
    assert [len(n.inputs) for n in case.graph.nodes if n.op == "Conv"] == inputs
    assert case.error() < before


def test_a_shared_bias_is_not_changed_for_its_other_reader() -> None:
    proto = fm.residual_net()
    for node in proto.graph.node:
        if node.name in ("conv1", "conv2"):
            node.input[2] = "bias0"
    case = Case(proto, {"conv1": 4})
    before = {t.name: t.raw_data for t in proto.graph.initializer}
    case.refit()
    after = {t.name: t.raw_data for t in case.graph.to_model().proto.graph.initializer}
    assert after["bias0"] == before["bias0"]
    readers = [n.name for n in case.graph.nodes for t in n.inputs if t.name == "bias0"]
    assert readers == ["conv0", "conv2"]


def test_a_dead_input_leaves_the_weights() -> None:
    case = Case(fm.residual_net(), {}, kept=("conv0",))
    done = case.refit(x=np.zeros_like(SEEN))
    assert done[0].error_after == pytest.approx(done[0].error_before, rel=1e-6, abs=1e-6)
    assert np.isfinite(case.error())
    assert case.error() < 1e-4


def test_one_batch_serves_to_fit_and_to_choose() -> None:
    case = compressed()
    done = case.refit(x=SEEN[:2])
    assert len(done) == 4
    assert np.isfinite(case.error())


def test_no_tasks_is_no_work() -> None:
    assert Case(fm.residual_net(), {}).refit() == []


def test_the_seed_and_the_memory_change_nothing_else() -> None:
    results = []
    for memory in (10**9, 0):
        case = compressed()
        done = case.refit(memory=memory)
        results.append((done, case.graph.to_model().proto.SerializeToString(deterministic=True)))
    assert results[0] == results[1]


# the walk


def test_the_walker_keeps_only_what_is_alive() -> None:
    kept: list[set[str]] = []
    graph = Graph(load(fm.residual_net()))
    walker = Walker(graph, fm.dataset(fm.residual_net(), SEEN[:16]), 8, fm.ONE_THREAD, 0)
    steps: list[tuple[str, ...]] = [("a0",), ("b1", "a"), ("c1",), ("y",)]
    walker.plan([step[:1] for step in steps], [step[1:] for step in steps])
    whole = ModelProto()
    whole.CopyFrom(fm.residual_net())
    del whole.graph.output[:]
    whole.graph.output.extend(
        onnx.ValueInfoProto(name=n) for node in whole.graph.node for n in node.output
    )
    expected = fm.run(whole, {"x": SEEN[:16]})
    for step in steps:
        batches = list(walker.advance())
        assert len(batches) == 2
        kept += [set(batch) for batch in walker._kept]
        for name in step:
            together = np.concatenate([b[name] for b in batches])
            np.testing.assert_allclose(together, expected[name], rtol=1e-4, atol=1e-4)
    # a tensor and, in a block, its skip branch; nothing at the end
    assert max(map(len, kept)) <= 2
    assert kept[-1] == set()


def test_each_model_runs_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes: list[int] = []
    session = Runtime.session

    def counted(self: Runtime, model: Model, **options: Any) -> Any:
        nodes.append(sum(n.op_type == "Conv" for n in model.proto.graph.node))
        return session(self, model, **options)

    monkeypatch.setattr(Runtime, "session", counted)
    case = compressed()
    case.refit()
    # four of the original, seven of the compressed net less the last, which nobody reads
    assert sum(nodes) == 4 + 6


def test_a_ridge_below_the_rounding_of_the_sums_is_none() -> None:
    """Float32 sums may leave the covariance of nearly equal inputs indefinite."""
    random = np.random.default_rng(0)
    x = random.standard_normal((500, 3))
    w = random.standard_normal((2, 3))
    covariance = x.T @ x / len(x)
    cross, start = w @ covariance, np.zeros((2, 3))
    exact = solution(start, covariance, cross, 1e-9)
    np.testing.assert_allclose(exact, w, rtol=1e-6)
    indefinite = np.diag([1.0, 1.0, -1e-4])
    below, above = (solution(start, indefinite, cross, ridge) for ridge in (1e-5, 1e-3))
    assert below is start
    assert np.isfinite(above).all()
    assert (above != start).all()


@pytest.mark.parametrize("least", range(len(RIDGES)))
def test_the_least_ridge_is_found_downhill(least: int) -> None:
    asked: list[float] = []

    def error(ridge: float) -> float:
        asked.append(ridge)
        return abs(RIDGES.index(ridge) - least)

    assert _least(error) == RIDGES[least]
    assert np.inf in asked


def test_the_weights_at_hand_win_where_they_are_far_from_the_middle() -> None:
    assert _least(lambda ridge: {np.inf: 1.0, 1e-2: 2.0}.get(ridge, 3.0)) == np.inf
