from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_lowrank.analysis import reader
from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.collect import collect_moments
from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.analysis.reader import batch_size, drawn_positions
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import PlacedLayer, find_layers
from onnx_lowrank.modelfile.array_store import Slot
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.progress import Progress
from onnx_lowrank.samples.dataset import Dataset
from tests import fixtures_models as fm

NET = fm.residual_net()
PICTURES = fm.pictures(40)
WIDE = 10**9


def collected(
    data: Dataset, *, proto: ModelProto = NET, seed: int = 0, memory: int = WIDE,
    progress: Progress | None = None,
) -> tuple[list[PlacedLayer], MomentStore]:  # fmt: skip
    graph = Graph(load(proto))
    layers, _ = find_layers(graph)
    shapes = tensor_shapes(load(proto), {"x": (1, 3, 7, 7)})
    store = collect_moments(
        graph, layers, data, shapes,
        Streaming(fm.ONE_THREAD, seed, progress or Progress(), memory),
    )  # fmt: skip
    return layers, store


def tensors(proto: ModelProto, x: fm.AnyArray) -> dict[str, fm.AnyArray]:
    """Every tensor of the model, on the whole of the data at once."""
    whole = ModelProto()
    whole.CopyFrom(proto)
    del whole.graph.output[:]
    names = [name for node in whole.graph.node for name in node.output]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return {"x": x, **fm.run(whole, {"x": x})}


def expected(layer: PlacedLayer, x: fm.AnyArray) -> Moments:
    """By numpy, from all rows at once."""
    rows = layer.geometry.patches(x).astype(np.float64)
    everything = Accumulator(len(rows), rows.shape[2])
    mean = rows.mean(1)
    centred = rows - mean[:, None]
    scatter = np.einsum("gnd,gne->gde", centred, centred)
    count = np.array(rows.shape[1])
    sums = {"count": count, "mean": mean, "scatter": scatter}
    everything.restore(everything.state() | sums)
    return everything.moments()


def same(one: Moments, two: Moments, tolerance: float) -> None:
    assert one.count == two.count
    for a, b in ((one.mean, two.mean), (one.covariance, two.covariance)):
        assert a is not None
        assert b is not None
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# values


@pytest.mark.parametrize("memory", [WIDE, 300_000], ids=["at once", "in groups"])
def test_moments_are_those_of_the_whole_data(memory: int) -> None:
    layers, store = collected(fm.dataset(NET, PICTURES), memory=memory)
    values = tensors(NET, PICTURES)
    assert set(store) == {la.name for la in layers}
    assert len(store) == 4
    for layer in layers:
        same(store[layer.name], expected(layer, values[layer.input]), 1e-5)


def test_totals_are_the_variance_of_where_the_response_ends_up() -> None:
    _, store = collected(fm.dataset(NET, PICTURES))
    values = tensors(NET, PICTURES)
    for name, total in (("conv0", "a0"), ("conv1", "b1"), ("conv2", "c1"), ("conv3", "y")):
        variance = values[total].astype(np.float64).var(axis=(0, 2, 3)).sum()
        assert store.totals[name] == pytest.approx(variance, rel=1e-5)


def test_a_fixed_batch_gives_the_same() -> None:
    proto = ModelProto()
    proto.CopyFrom(NET)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    _, one = collected(fm.dataset(proto, PICTURES), proto=proto)
    _, two = collected(fm.dataset(NET, PICTURES))
    for name in two:
        same(one[name], two[name], 1e-5)


# groups and memory


class _Recorded(Progress):
    """Remembers how much was announced and how much was done."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.done = 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Any]:
        self.totals[name] = total

        def advance(units: int) -> None:
            self.done += units

        yield advance


@pytest.mark.parametrize(("memory", "passes"), [(WIDE, 1), (375_000, 2), (150_000, 3), (1, 4)])
def test_small_memory_reads_the_data_several_times(memory: int, passes: int) -> None:
    progress = _Recorded()
    data = fm.dataset(NET, PICTURES)
    _, store = collected(data, memory=memory, progress=progress)
    assert progress.totals == {"calibrate": passes * len(data)}
    assert progress.done == passes * len(data)
    assert len(store) == 4


def test_what_is_held_does_not_grow_with_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    # the largest array that is captured, and the sizes of the accumulators
    sizes: list[int] = []
    update = Accumulator.update

    def recorded(self: Accumulator, rows: fm.AnyArray) -> None:
        update(self, rows)
        held = sum(array.nbytes for array in self.state().values())
        sizes.append(rows.nbytes + held)

    monkeypatch.setattr(Accumulator, "update", recorded)
    monkeypatch.setattr(Accumulator, "_ELEMENTS", 1024)  # so that few rows wait
    peaks = []
    for count in (64, 256):
        sizes.clear()
        collected(fm.dataset(NET, fm.pictures(count)))
        peaks.append(max(sizes))
    assert peaks[0] == peaks[1]


def test_spilled_moments_are_those_that_were_held() -> None:
    data = fm.dataset(NET, PICTURES)
    _, held = collected(data)
    spilled = MomentStore(memory=0)
    for name in held:
        spilled.add(held[name], name)
    assert all(isinstance(spilled._found[name].blocks[0], Slot) for name in held)
    assert list(spilled) == list(held)
    for name in held:
        same(spilled[name], held[name], 0.0)


def test_the_store_spills_what_is_over_its_memory() -> None:
    moments = Moments(3, np.zeros((1, 10)), np.eye(10)[None])
    store = MomentStore(memory=2 * moments.bytes)
    for name in "abcd":
        store.add(moments, name)
    on_disk = [isinstance(store._found[name].blocks[0], Slot) for name in "abcd"]
    assert on_disk == [False, False, True, True]
    store.add(Moments(), "none")
    assert store["none"] == Moments()
    with pytest.raises(KeyError):
        store["e"]


def test_batches_fit_in_memory() -> None:
    shapes = {"a": (1, 10, 5, 5), "b": (1, 100)}
    assert batch_size(["a"], shapes, 10_000) == 10
    assert batch_size(["a", "b"], shapes, 10_000) == 7
    assert batch_size(["a"], shapes, 10**9) == reader.LARGEST_BATCH
    assert batch_size(["a"], shapes, 1) == 1
    assert batch_size([], {}, 1) == 1


# drawn positions


def drawn(seed: int) -> MomentStore:
    return collected(fm.dataset(NET, PICTURES), seed=seed)[1]


def test_the_seed_decides_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "ENOUGH_ROWS", 200)
    monkeypatch.setattr(reader, "ROWS_PER_COLUMN", 4)
    one, again, other = drawn(0), drawn(0), drawn(1)
    whole = collected(fm.dataset(NET, PICTURES))[0]
    for layer in whole:
        same(one[layer.name], again[layer.name], 0.0)
        assert one[layer.name].count < 40 * 49
        with pytest.raises(AssertionError):
            same(one[layer.name], other[layer.name], 1e-6)
        full = expected(layer, tensors(NET, PICTURES)[layer.input])
        mean = one[layer.name].mean
        assert mean is not None
        assert full.mean is not None
        assert fm.relative(mean, full.mean) < 0.3


def test_positions_are_sorted_and_different() -> None:
    rng = np.random.default_rng(0)
    index = drawn_positions(1000, (1, 10), 1000, rng)
    assert index is not None
    assert len(index) == reader.ENOUGH_ROWS // 1000
    assert np.all(np.diff(index) > 0)
    assert index.max() < 1000


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((1, 1), reader.ENOUGH_ROWS),
        ((1, 500), reader.ENOUGH_ROWS),
        ((1, 2000), reader.ROWS_PER_COLUMN * 2000),
        ((64, 9), reader.ENOUGH_ROWS),
        ((1000, 24), reader.ENOUGH_VALUES // 24_000),
        ((10_000, 100), reader.ROWS_PER_COLUMN * 100),
    ],
)
def test_rows_are_enough_for_the_columns(shape: tuple[int, int], rows: int) -> None:
    rng = np.random.default_rng(0)
    for samples in (1, 7, 100):
        index = drawn_positions(10**5, shape, samples, rng)
        assert index is not None
        assert rows <= samples * len(index) < rows + samples
    assert drawn_positions(10, shape, rows // 10, rng) is None
