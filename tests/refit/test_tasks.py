from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.preparation import Prepared, prepare
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.channels.cut import Remains
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.writer import Written, apply_chain
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.plan import Decision
from onnx_lowrank.planning.proposals import cut_candidate, outlined
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning.channel_cuts import KeptChannels
from onnx_lowrank.pruning.cutting import Cutting
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.refit.refit import Manner, Refit, refit
from onnx_lowrank.refit.shared import Shared
from onnx_lowrank.refit.task import Task
from onnx_lowrank.refit.tasks import _input_of_last, refit_tasks
from tests import fixtures_models as fm
from tests.analyses import samples_of

NET = fm.residual_net(12)
SEEN, UNSEEN = fm.pictures(80, seed=1), fm.pictures(40, seed=2)
FACTORIZATIONS = parse_list("spatial_svd")[1]


class Case:
    """A net pruned and factorized, before its refit."""

    def __init__(
        self,
        proto: ModelProto,
        kept: KeptChannels,
        ranks: dict[str, int],
        repair: str = "chain",
        zeros: bool = False,
    ) -> None:
        self.proto = proto
        self.source = load(proto)
        self.data = samples_of(self.source, {"x": SEEN})
        self.original = self._prepare(self.source)
        pruning = parse_list("prune_channels").prunings[0]
        cutting = Cutting(pruning.options, pruning)
        pruner = Pruner(self.original, cutting, "macs", Progress())
        graph = Graph(self.source)
        self.remains = pruner.cuts.apply(graph, kept) if kept else Remains({}, {})
        self.work = self._prepare(graph.to_model()) if kept else self.original
        self.compressed = Graph(self.work.model)
        named = {la.name: la for la in find_layers(self.compressed)[0]}
        decisions, written = {}, dict[str, Written]()
        firsts: dict[str, Callable[[], Chain]] = {}
        self.begun: list[str] = []
        for layer in self.work.layers:
            rank = ranks.get(layer.name, 0)
            decision = Decision(
                layer.name, "Conv", "factorize" if rank else "keep", "spatial_svd", "vh", rank,
                0.0, 0, 0, 0, 10**6, "",
            )  # fmt: skip
            decisions[layer.name] = decision
            if rank:
                moments = self.work.moments[layer.name]
                first = partial(cut_candidate, layer.value, decision, FACTORIZATIONS, moments)
                if zeros:
                    outline = outlined(layer.value, decision, FACTORIZATIONS, moments)
                    assert outline is not None
                    firsts[layer.name] = partial(self._begin, layer.name, first)
                chain = outline if zeros else first()
                written[layer.name] = apply_chain(self.compressed, named[layer.name], chain)
        self.tasks = refit_tasks(
            self.original, self.work, self.remains, self.compressed, written, decisions,
            FACTORIZATIONS, repair, outlined=firsts,
        )  # fmt: skip

    def _begin(self, name: str, first: Callable[[], Chain]) -> Chain:
        self.begun.append(name)
        return first()

    def _prepare(self, model: Model) -> Prepared:
        return prepare(model, self.data, fm.streaming(), lambda _: None, every_shape=True)

    def error(self) -> float:
        new = fm.run(self.compressed.to_model().proto, {"x": UNSEEN})["y"]
        return fm.relative(new, fm.run(self.proto, {"x": UNSEEN})["y"])

    def refit(self) -> list[Refit]:
        assert self.data.calibration is not None
        return refit(
            self.original.graph, self.compressed, self.tasks, self.data.calibration,
            fm.streaming(), Manner(8),
        )  # fmt: skip


def task(case: Case, name: str) -> Task:
    return next(t for t in case.tasks if t.written.layer.name == name)


LEFT = np.array([0, 2, 3, 5, 8, 9, 11])


def test_chains_and_kept_layers_behind_them() -> None:
    case = Case(NET, {}, {"conv1": 4})
    assert [t.written.layer.name for t in case.tasks] == ["conv1", "conv2", "conv3"]
    assert all(t.rows is None for t in case.tasks)


def test_what_stands_before_the_first_change_stays() -> None:
    case = Case(NET, {}, {"conv3": 4})
    assert [t.written.layer.name for t in case.tasks] == ["conv3"]
    before = {t.name: t for t in NET.graph.initializer}
    after = {t.name: t for t in case.compressed.to_model().proto.graph.initializer}
    assert after["w0"] == before["w0"]


def test_nothing_to_do() -> None:
    assert Case(NET, {}, {}).tasks == []


def test_rows_are_those_that_are_left() -> None:
    """Of the sum behind a residual branch; the last layer makes all of its own."""
    case = Case(NET, {"conv0": LEFT}, {})
    mask = np.isin(np.arange(12), LEFT)
    for name in ("conv0", "conv1", "conv2"):
        rows = task(case, name).rows
        assert rows is not None
        np.testing.assert_array_equal(rows, mask)
        assert task(case, name).original.outline.weight.shape[0] == 12
        assert task(case, name).stage.outline.weight.shape[0] == 7
    assert task(case, "conv3").rows is None
    assert task(case, "conv3").stage.outline.weight.shape == (12, 7, 3, 3)
    assert task(case, "conv3").original.outline.weight.shape == (12, 12, 3, 3)


@pytest.mark.parametrize(
    ("kept", "ranks"),
    [
        ({"conv0": LEFT}, {}),
        ({"conv0": LEFT}, {"conv1": 5, "conv3": 6}),
        ({}, {"conv1": 5, "conv3": 6}),
        ({"conv1 (input)": LEFT, "conv3 (input)": LEFT}, {}),
    ],
    ids=["pruned", "both", "factorized", "gathered"],
)
def test_refit_lowers_the_error(kept: KeptChannels, ranks: dict[str, int]) -> None:
    case = Case(NET, kept, ranks)
    before = case.error()
    case.refit()
    assert 0 < case.error() < before


# chains without numbers


def projected_net() -> ModelProto:
    """The residual net, whose first skip branch is a convolution that is listed last."""
    made = fm.residual_net(12)
    graph = made.graph
    weight, bias = (t for t in graph.initializer if t.name in ("w2", "bias2"))
    nodes = list(graph.node)
    add = next(i for i, node in enumerate(nodes) if node.output[0] == "b1")
    skip = helper.make_node("Conv", ["a", weight.name, bias.name], ["s"], "skip", pads=[1, 1, 1, 1])
    nodes[add].input[1] = "s"
    nodes.insert(add, skip)
    del graph.node[:]
    graph.node.extend(nodes)
    return made


def test_chains_without_numbers_end_as_those_that_had_some() -> None:
    ranks = {"conv1": 5, "conv3": 6}
    one, other = Case(NET, {}, ranks), Case(NET, {}, ranks, zeros=True)
    first, second = one.refit(), other.refit()
    assert other.error() == one.error() < 1
    assert other.begun == []
    assert [r.chain_error for r in first] == [0.0, 0.0, 0.0]
    errors = {r.layer: r.chain_error for r in second}
    assert errors["conv2"] == 0
    assert 0 < errors["conv1"] < 1
    assert 0 < errors["conv3"] < 1


def test_skip_branches_that_are_solved_later_are_begun_before() -> None:
    proto, ranks = projected_net(), {"conv1": 5, "skip": 5, "conv3": 6}
    one, other = Case(proto, {}, ranks), Case(proto, {}, ranks, zeros=True)
    one.refit()
    other.refit()
    assert other.begun == ["skip"]
    assert other.error() == one.error()


def test_a_layer_that_nothing_is_seen_of_is_cut_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = Case(NET, {}, {"conv3": 6}), Case(NET, {}, {"conv3": 6}, zeros=True)
    monkeypatch.setattr(Shared, "sums", lambda *_: (Accumulator(1, 108), Accumulator(1, 108)))
    assert other.refit() == []
    assert other.begun == ["conv3"]
    assert other.error() == one.error()


def test_sums_are_fitted_to_the_channels_that_are_left() -> None:
    """Each residual sum comes nearer to that of the original, its channels picked."""
    case = Case(NET, {"conv0": LEFT}, {"conv1": 3, "conv2": 3})

    def errors() -> list[float]:
        found = []
        for name in ("b1", "c1"):
            wanted = tensor(NET, name)[:, LEFT]
            found.append(fm.relative(tensor(case.compressed.to_model().proto, name), wanted))
        return found

    before = errors()
    case.refit()
    after = errors()
    assert after[0] < before[0] * 1.001  # solved already: nothing before it changed
    assert after[1] < before[1] * 0.99


def tensor(proto: ModelProto, name: str, x: fm.AnyArray = UNSEEN) -> fm.AnyArray:
    """A value inside of a model."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return fm.run(copy, {"x": x})[name]


def test_chains_are_cut_again_as_decided() -> None:
    case = Case(NET, {"conv0": LEFT}, {"conv2": 3})
    case.refit()
    shapes = [la.shape for la in find_layers(Graph(case.compressed.to_model()))[0]]
    assert (3, 7, 3, 1) in shapes
    assert (7, 3, 1, 3) in shapes


def test_last_stages_alone() -> None:
    """The first stages stay as the plan made them; what is solved is the least-squares answer."""
    case = Case(NET, {}, {"conv1": 4, "conv2": 3}, "last")
    assert [t.stage.outline.weight.shape for t in case.tasks] == [
        (12, 4, 1, 3), (12, 3, 1, 3), (12, 12, 3, 3)
    ]  # fmt: skip
    assert [t.reads for t in case.tasks[:2]] == ["b0_vertical", "c0_vertical"]
    before, stored = case.error(), initializers(case)
    case.refit()
    after = initializers(case)
    firsts = [name for name in stored if "vertical" in name]
    assert len(firsts) == 2
    for name in firsts:
        np.testing.assert_array_equal(after[name], stored[name])
    assert case.error() < before
    # the first chain reads what the original does, so its solution can be had from the data
    stage = case.tasks[0].stage.read()
    patches = stage.geometry.patches(tensor(case.compressed.to_model().proto, "b0_vertical", SEEN))
    wanted = stage.geometry.responses(tensor(NET, "b0", SEEN))[0]
    rows = np.column_stack([patches[0], np.ones(len(wanted))]).astype(np.float64)
    wanted = wanted.astype(np.float64)
    least = np.sum((wanted - rows @ np.linalg.lstsq(rows, wanted, rcond=None)[0]) ** 2)
    found = case.tasks[0].written.chain.last
    assert isinstance(found, Stage)
    assert found.bias is not None
    left = np.sum((wanted - patches[0] @ found.matrices[0].T - found.bias) ** 2)
    assert least <= left < 1.005 * least  # a ridge is chosen


@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_the_last_stage_of_a_product_reads_the_features(op: str) -> None:
    """Behind a MatMul comes the Add of the bias."""
    weights = {"w": fm.float32(np.random.default_rng(0).standard_normal((8, 6)))}
    bias = {"c": np.ones(6, np.float32)}
    nodes = [helper.make_node("Gemm", ["x", "w", "c"], ["y"], name="fc")]
    if op == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
                 helper.make_node("Add", ["h", "c"], ["y"])]  # fmt: skip
    graph = Graph(load(fm.build(nodes, {"x": ["N", 8]}, {"y": ["N", 6]}, weights | bias)))
    (layer,) = find_layers(graph)[0]
    assert layer.stage.bias is not None
    chain = parse_list("svd")[1][0].propose(layer.value, Moments())[0].cut(2)
    reads = _input_of_last(graph, apply_chain(graph, layer, chain))
    maker = graph.producer(reads)
    assert maker is not None
    assert maker.inputs[0].name == "x"


def initializers(case: Case) -> dict[str, fm.AnyArray]:
    tensors = case.compressed.to_model().proto.graph.initializer
    return {t.name: numpy_helper.to_array(t) for t in tensors}
