"""Shards that are read elsewhere add up to the very bits of those that are read here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from onnx_lowrank.analysis import reader
from onnx_lowrank.analysis.accumulator import Accumulator, Recorder
from onnx_lowrank.analysis.class_shares import ClassShares
from onnx_lowrank.analysis.collect import collect_moments
from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.preparation import Prepared, prepare
from onnx_lowrank.analysis.reader import shard_size
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile import model as modelfile
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.workers import Workers
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.split import Samples
from tests import fixtures_models as fm
from tests.analysis.test_moment_cache import Interrupting, at_once
from tests.fixtures_text import readings, text_net
from tests.in_turn import InTurn
from tests.support import rng

WIDE = 10**9


# sums


def read(into: Accumulator, shard: fm.AnyArray, cuts: list[int]) -> None:
    """Read the rows ``(groups, n, d + outputs)`` of a shard in parts."""
    for part in np.split(shard, sorted(cut % (shard.shape[1] + 1) for cut in cuts), axis=1):
        into.update(part)
    into.end_shard()


@given(
    st.lists(st.integers(0, 900), min_size=1, max_size=6),
    st.lists(st.integers(0, 900), max_size=3),
    st.sampled_from([(1, 5, 0), (2, 3, 4), (1, 0, 3), (1, 300, 2)]),
    st.integers(0, 2**32 - 1),
)
def test_shards_add_up_to_what_one_accumulator_reads(
    sizes: list[int], cuts: list[int], shape: tuple[int, int, int], seed: int
) -> None:
    groups, width, outputs = shape
    rows = 3 + rng(seed).normal(size=(groups, sum(sizes), width + outputs)).astype(np.float32)
    if sum(sizes):
        rows[:, rng(seed).integers(sum(sizes)), 0] = np.nan
    shards = np.split(rows, np.cumsum(sizes)[:-1], axis=1)
    here, elsewhere = Accumulator(*shape), Accumulator(*shape)
    for shard in shards:
        read(here, shard, cuts)
        recorder = Recorder(*shape)
        read(recorder, shard, [])
        elsewhere.add_shard(recorder.shard())
    for name in ("count", "mean", "scatter", "cross_scatter", "variances"):
        np.testing.assert_array_equal(getattr(here, name), getattr(elsewhere, name))
    # and that is what all rows at once give
    whole = Accumulator(*shape)
    whole.update(rows)
    assert here.count == whole.count
    for name in ("mean", "scatter", "cross_scatter", "variances"):
        one, two = getattr(here, name), getattr(whole, name)
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * max(np.abs(two).max(initial=0), 1))


def test_what_shards_leave_over_is_held_as_rows_and_written_down() -> None:
    rows = rng(0).normal(size=(1, 300, 4)).astype(np.float32)
    one, two = Accumulator(1, 4), Accumulator(1, 4)
    for start in range(0, 300, 30):
        one.update(rows[:, start : start + 30])
        one.end_shard()
        again = Accumulator(1, 4)
        again.restore({name: values.copy() for name, values in two.state().items()})
        two = again
        two.update(rows[:, start : start + 30])
        two.end_shard()
    assert one.state()["left"].shape == (1, 300, 4)
    np.testing.assert_array_equal(one.scatter, two.scatter)
    np.testing.assert_allclose(one.mean, rows.mean(axis=1), rtol=0, atol=1e-6)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_class_shares_and_counts_add_up(batches: list[int], seed: int) -> None:
    scores = [rng(seed + i).normal(size=(n, 3)) for i, n in enumerate(batches)]
    shares, counts = (
        [ClassShares(3, 1, sum(batches)) for _ in range(2)],
        [RowCounts(3) for _ in range(2)],
    )
    for number, batch in enumerate(scores):
        shares[0].update(batch, len(batch), number)
        counts[0].update(batch.argmax(axis=1))
        if number % 2:
            shares[0].sums.end_shard()
    shares[0].sums.end_shard()
    for first in range(0, len(scores), 2):
        part, counted = ClassShares(3, 1, sum(batches)), RowCounts(3)
        for number, batch in enumerate(scores[first : first + 2], first):
            part.update(batch, len(batch), number)
            counted.update(batch.argmax(axis=1))
        part.sums.end_shard()
        shares[1].sums.add_shard(part.sums.shard())
        counts[1].add_shard(counted.shard())
    for a, b in ([s.sums.state() for s in shares], [c.state() for c in counts]):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(("samples", "batch"), [(1, 1), (15, 1), (40, 32), (1000, 32), (999, 7)])
def test_shards_are_whole_batches_and_few(samples: int, batch: int) -> None:
    size = shard_size(samples, batch)
    assert size % batch == 0
    assert -(-samples // size) <= reader.SHARDS
    assert size == batch or -(-samples // (size - batch)) > reader.SHARDS


# models


def same(one: MomentStore, two: MomentStore) -> None:
    assert list(one) == list(two)
    assert one.totals == two.totals
    assert one.silent == two.silent
    assert one.outputs.keys() == two.outputs.keys()
    assert one.gates.keys() == two.gates.keys()
    for name in one:
        a, b = one[name], two[name]
        assert (a.count, a.one_hot) == (b.count, b.one_hot)
        for x, y in ((a.mean, b.mean), (a.covariance, b.covariance)):
            np.testing.assert_array_equal(x, y)
        metrics = [vars(m.outputs) if m.outputs is not None else {} for m in (a, b)]
        for key in metrics[0]:
            np.testing.assert_array_equal(metrics[0][key], metrics[1][key])


def prepared(model: Model, data: Dataset, memory: int, workers: Workers | None) -> Prepared:
    streaming = Streaming(fm.ONE_THREAD, 3, Progress(), memory, workers)
    return prepare(model, Samples(data, data.subset([0]), ()), streaming, lambda _: None)


@pytest.mark.parametrize("net", ["vgg", "lstm", "vit"])
@pytest.mark.parametrize(("memory", "workers"), [(WIDE, 3), (400_000, 1)])
def test_workers_make_the_same_bits(
    net: str, memory: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LARGEST_BATCH", 2)
    monkeypatch.setattr(reader, "ENOUGH_ROWS", 500)  # so that positions are drawn
    model = load(fm.digits(net))
    data = fm.dataset(model.proto, {"image": np.load(fm.DIGITS)["image"][:50]})
    alone = prepared(model, data, memory, None)
    assert bool(alone.moments.gates) == (net == "lstm")
    crew = InTurn(workers)
    same(prepared(model, data, memory, crew).moments, alone.moments)
    assert crew.calls > 12


def test_lookups_are_counted_by_workers_and_shares_of_classes_too() -> None:
    proto = text_net()
    proto.graph.node.append(onnx.helper.make_node("Softmax", ["y"], ["classes"]))
    proto.graph.output[0].name = "classes"
    model, data = load(proto), fm.dataset(proto, {"ids": readings(40)})
    crew, alone = InTurn(2), prepared(model, data, WIDE, None).moments
    assert alone.outputs.keys() == {"scores"}
    same(prepared(model, data, WIDE, crew).moments, alone)
    assert crew.calls == 2


def test_runs_that_are_no_batches_are_shared_out_too() -> None:
    proto = ModelProto()
    proto.CopyFrom(fm.residual_net())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    model, data = load(proto), fm.dataset(proto, fm.pictures(40))
    crew = InTurn(2)
    same(prepared(model, data, WIDE, crew).moments, prepared(model, data, WIDE, None).moments)
    assert crew.calls == 10


# interruptions


class LostError(Exception):
    """Of workers, at some point."""


class _Losing(InTurn):
    def answers(self, *arguments: Any) -> Any:
        for number, answer in enumerate(super().answers(*arguments)):
            if number == 2:
                raise LostError
            yield answer


def test_what_was_begun_in_one_way_is_ended_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LARGEST_BATCH", 2)
    monkeypatch.setattr(reader, "SHARDS", 5)
    graph = Graph(load(fm.residual_net()))
    data = fm.dataset(fm.residual_net(), fm.pictures(40))
    shapes = dict.fromkeys(("x", "a0", "a1", "b1", "c1"), (1, 12, 7, 7))

    def collected(
        cache: MomentCache | None, workers: Workers | None, progress: Progress | None = None
    ) -> MomentStore:
        layers, _ = find_layers(graph)
        streaming = Streaming(fm.ONE_THREAD, 3, progress or Progress(), WIDE, workers)
        return collect_moments(graph, layers, data, shapes, streaming, cache=cache)

    whole = collected(None, None)
    with pytest.raises(KeyboardInterrupt):
        collected(at_once(tmp_path, {}), None, Interrupting(4))
    cache = at_once(tmp_path, {})
    with pytest.raises(LostError):
        collected(cache, _Losing())
    assert cache.resumed == 6  # of a shard of 8, which is ended here
    cache = at_once(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        collected(cache, InTurn(), Interrupting(2))
    assert cache.resumed == 24
    cache = at_once(tmp_path, {})
    same(collected(cache, None), whole)
    assert cache.resumed == 24


# what is sent


def test_weights_in_the_temporary_file_are_sent_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_lowrank.modelfile.scratch import Scratch

    proto = onnx.ModelProto()
    proto.CopyFrom(fm.residual_net())
    scratch, first = Scratch(), proto.graph.initializer[0]
    values = onnx.numpy_helper.to_array(first)
    first.CopyFrom(scratch.add(first.name, values))
    model = Model(proto, scratch=scratch)
    sent = model.portable
    assert sent.scratch is None
    assert not sent.external
    np.testing.assert_array_equal(sent.read(sent.proto.graph.initializer[0]), values)
    assert replace(model, scratch=None).portable.external  # files of others stay where they are
    monkeypatch.setattr(modelfile, "LARGEST_PROTO", 1000)
    with pytest.raises(ModelError, match="too many to be sent to workers; leave the scheduler"):
        _ = model.portable


def test_weights_that_a_worker_does_not_see_are_named(tmp_path: Path) -> None:
    model = load(fm.external(tmp_path, fm.residual_net()))
    data = fm.dataset(fm.residual_net(), fm.pictures(4))
    alone = prepared(model, data, WIDE, None).moments
    same(prepared(model, data, WIDE, InTurn()).moments, alone)

    class Elsewhere(InTurn):
        def answers(self, call: Any, shared: Any, arguments: Any) -> Any:
            there = replace(shared.model, folder=tmp_path / "absent")
            yield from super().answers(call, replace(shared, model=there), arguments)

    with pytest.raises(ModelError, match=r"does not see the weights .*; share .*absent with it"):
        prepared(model, data, WIDE, Elsewhere())
