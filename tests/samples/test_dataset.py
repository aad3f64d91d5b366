from __future__ import annotations

import gc
import io
import tempfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lowrank.errors import DataError, ModelError, OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.samples import archives
from onnx_lowrank.samples.dataset import (
    ImageOptions,
    InputSpec,
    has_part,
    input_specs,
    load_dataset,
    split,
)

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
X = (InputSpec("x", FLOAT, (None, 3)),)
XY = (*X, InputSpec("ids", INT, (None, None)))
RNG = np.random.default_rng(0)
A = RNG.standard_normal((7, 3)).astype(np.float32)
IDS = RNG.integers(0, 9, (7, 5))


def specs_of(*infos, weights=()):
    graph = helper.make_graph(
        [helper.make_node("Identity", [infos[0].name], ["y"])],
        "g",
        list(infos),
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in weights],
    )
    return input_specs(Model(helper.make_model(graph)))


def rows(data, name="x"):
    return np.concatenate([data.feed(i)[name] for i in range(len(data))])


# inputs


def test_input_specs():
    specs = specs_of(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, None, 0, -1]),
        helper.make_tensor_value_info("rate", TensorProto.INT64, []),
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]),
        helper.make_tensor_value_info("b", TensorProto.BFLOAT16, None),
        weights=["w"],
    )
    assert specs == (
        InputSpec("x", FLOAT, (None, 3, None, None, None)),
        InputSpec("rate", INT, ()),
        InputSpec("b", np.dtype(ml_dtypes.bfloat16), None),
    )


def test_input_specs_refuse_what_cannot_be_fed():
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    with pytest.raises(ModelError, match="'s' is of the type sequence, and only tensors"):
        specs_of(sequence)
    with pytest.raises(ModelError, match="'x' has no element type"):
        specs_of(helper.make_tensor_value_info("x", TensorProto.UNDEFINED, [1]))
    with pytest.raises(ModelError, match="'x' is untyped, and only tensors"):
        specs_of(helper.make_empty_tensor_value_info("x"))


# sources: one set of samples in every guise


def _npz(folder):
    np.savez(folder / "c.npz", x=A, ids=IDS)
    return folder / "c.npz"


def _compressed(folder):
    np.savez_compressed(folder / "c.NPZ.npz", x=A, ids=IDS)
    return str(folder / "c.NPZ.npz")


def _npz_folder(folder):
    for k, part in enumerate([slice(0, 2), slice(2, 3), slice(3, 7)]):
        np.savez(folder / f"{k}.npz", x=A[part], ids=IDS[part])
    return folder


def _tensors(folder):
    for k in range(7):
        sample = folder / f"test_data_set_{k + 5}"  # 10 comes after 9
        sample.mkdir()
        for j, array in enumerate((A, IDS)):
            tensor = numpy_helper.from_array(array[k : k + 1])
            (sample / f"input_{j}.pb").write_bytes(tensor.SerializeToString())
        (sample / "output_0.pb").write_bytes(b"not looked at")
    return folder


def _dict(folder):
    return {"x": A, "ids": IDS}


def _fortran(folder):
    np.savez(folder / "f.npz", x=np.asfortranarray(A), ids=np.asfortranarray(IDS))
    return folder / "f.npz"


def _feeds(folder):
    return [{"x": A[i : i + 1], "ids": IDS[i : i + 1]} for i in range(7)]


def _generator(folder):
    yield from _feeds(folder)


def _large_feeds(folder):
    return [{"x": A[:4], "ids": IDS[:4]}, {"x": A[4:], "ids": IDS[4:]}]


class Reader:
    """As ONNX Runtime's CalibrationDataReader, whose length raises."""

    def __init__(self):
        self.position = 0

    def __len__(self):
        raise NotImplementedError

    def get_next(self):
        i, self.position = self.position, self.position + 1
        return {"x": A[i : i + 1], "ids": IDS[i : i + 1]} if i < 7 else None


class Rewinding(Reader):
    def rewind(self):
        self.position = 0


def _reader(folder):
    return Reader()


def _used_reader(folder):
    reader = Rewinding()
    while reader.get_next() is not None:
        pass
    return reader


def _factory(folder):
    return lambda: _generator(folder)


def _function(folder):
    _npz(folder)
    (folder / "own.py").write_text(
        "import numpy as np\nfrom pathlib import Path\nDATA = Path(__file__).parent / 'c.npz'\n\n"
        "def feeds():\n    with np.load(DATA) as data:\n        yield {k: data[k] for k in data}\n"
    )
    return f"{folder / 'own.py'}:feeds"


SOURCES = [
    _npz,
    _compressed,
    _npz_folder,
    _tensors,
    _dict,
    _fortran,
    _feeds,
    _generator,
    _large_feeds,
    _reader,
    _used_reader,
    _factory,
    _function,
]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same(tmp_path, source):
    data = load_dataset(source(tmp_path), XY)
    gc.collect()  # the views alone must keep the temporary file
    assert len(data) == 7
    assert data.batchable
    assert data.labels is None
    assert data.notes == ()
    for i in range(7):
        feed = data.feed(i)
        assert list(feed) == ["x", "ids"]
        np.testing.assert_array_equal(feed["x"], A[i : i + 1])
        np.testing.assert_array_equal(feed["ids"], IDS[i : i + 1])
        assert all(type(v) is np.ndarray and v.flags.c_contiguous for v in feed.values())
    assert data.digest() == load_dataset({"x": A, "ids": IDS}, XY).digest()
    chosen = np.sort(np.random.default_rng(1).choice(7, 3, replace=False))
    assert load_dataset(data, XY, samples=3, seed=1).digest() == data.subset(chosen).digest()


@pytest.mark.parametrize("in_place", [True, False])
def test_npy(tmp_path, monkeypatch, in_place):
    monkeypatch.setattr(archives, "MAP_IN_PLACE", 0 if in_place else 1 << 40)
    np.save(tmp_path / "a.npy", A)
    np.testing.assert_array_equal(rows(load_dataset(tmp_path / "a.npy", X)), A)
    np.save(tmp_path / "b.npy", np.asfortranarray(A[:2]))
    np.testing.assert_array_equal(rows(load_dataset(tmp_path, X)), np.concatenate([A, A[:2]]))


def test_array_and_what_converts_to_one():
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return A

    for source in (A, Tensor()):
        np.testing.assert_array_equal(rows(load_dataset(source, X)), A)


def test_single_folder_of_tensors(tmp_path):
    folder = _tensors(tmp_path) / "test_data_set_6"
    np.testing.assert_array_equal(rows(load_dataset(folder, XY)), A[1:2])


def test_temporary_file_goes_with_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = load_dataset(_generator(tmp_path), XY)
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert not any(tmp_path.iterdir())
    del data
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_full_disk(monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    with pytest.raises(DataError, match=r"No space left on device.*TMPDIR"):
        load_dataset(iter([{"x": A}]), X)


# the array rule


def test_fixed_batch_takes_rows_together_and_notes_the_rest():
    data = load_dataset({"x": A, "labels": np.arange(7)}, (InputSpec("x", FLOAT, (3, 3)),))
    assert len(data) == 2
    np.testing.assert_array_equal(data.feed(1)["x"], A[3:6])
    assert not data.batchable
    assert (
        "the last 1 of 7 samples of input 'x' do not fill the model's batch of 3" in data.notes[0]
    )
    np.testing.assert_array_equal(data.labels, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(data.subset([1]).labels, [[3, 4, 5]])
    assert [b["x"].shape for b in data.batches(4)] == [(3, 3), (3, 3)]


def test_fixed_batch_across_files(tmp_path):
    for k in range(7):
        np.save(tmp_path / f"{k}.npy", A[k : k + 1])
    data = load_dataset(tmp_path, (InputSpec("x", FLOAT, (3, 3)),))
    np.testing.assert_array_equal(rows(data), A[:6])


def test_fixed_batch_of_feeds():
    specs = (InputSpec("x", FLOAT, (2, 3)),)
    data = load_dataset([{"x": A[:2]}, {"x": A[2:4]}], specs)
    assert len(data) == 2
    np.testing.assert_array_equal(rows(data), A[:4])
    with pytest.raises(DataError, match=r"item 1 of the list: .*\(2, 3\)"):
        load_dataset([{"x": A[:2]}, {"x": A[2:3]}], specs)


def test_no_complete_batch():
    with pytest.raises(
        DataError, match="'x' expects a batch of 8, found 7 samples; give at least 8"
    ):
        load_dataset(A, (InputSpec("x", FLOAT, (8, 3)),))


def test_batch_of_one():
    data = load_dataset(A, (InputSpec("x", FLOAT, (1, 3)),))
    assert len(data) == 7
    assert not data.batchable


def test_one_axis_more():
    stack = RNG.standard_normal((4, 6, 3)).astype(np.float32)
    data = load_dataset(stack, X)
    assert len(data) == 4
    assert not data.batchable
    np.testing.assert_array_equal(data.feed(2)["x"], stack[2])


@pytest.mark.parametrize("rate", [16000, np.int32(16000), np.full(7, 16000)])
def test_scalar_input(rate):
    specs = (InputSpec("rate", INT, ()), *X)
    data = load_dataset({"x": A, "rate": rate}, specs)
    assert len(data) == 7
    assert not data.batchable
    for i in range(7):
        value = data.feed(i)["rate"]
        assert type(value) is np.ndarray
        assert (value.shape, value.dtype, int(value)) == ((), INT, 16000)


def test_scalar_in_feeds_and_in_files(tmp_path):
    specs = (InputSpec("rate", INT, ()), *X)
    feeds = [{"x": A[i : i + 1], "rate": 16000 + i} for i in range(7)]
    assert [int(f["rate"]) for f in load_dataset(feeds, specs).batches(1)] == list(
        range(16000, 16007)
    )
    np.savez(tmp_path / "a.npz", x=A[:5], rate=8)
    np.savez(tmp_path / "b.npz", x=A[5:], rate=9)
    data = load_dataset(tmp_path, specs)
    assert [int(data.feed(i)["rate"]) for i in range(7)] == [8] * 5 + [9] * 2


def test_unknown_rank():
    specs = (InputSpec("x", FLOAT, None),)
    data = load_dataset(A, specs)
    assert data.feed(3)["x"].shape == (1, 3)
    assert not data.batchable
    assert load_dataset([{"x": np.float32(1)}, {"x": A}], specs).feed(1)["x"].shape == (7, 3)
    assert load_dataset({"x": np.float32(1)}, specs).feed(0)["x"].shape == ()


def test_feeds_with_a_state_stay_whole():
    specs = (*X, InputSpec("state", FLOAT, (2, None, 4)))
    state = np.zeros((2, 5, 4), np.float32)
    data = load_dataset([{"x": A[:5], "state": state}] * 2, specs)
    assert len(data) == 2
    assert not data.batchable
    assert data.feed(1)["x"].shape == (5, 3)


def test_feeds_of_different_length_are_not_concatenated():
    specs = (InputSpec("ids", INT, (None, None)),)
    data = load_dataset([{"ids": np.zeros((2, n), np.int64)} for n in (3, 4)], specs)
    assert [b["ids"].shape for b in data.batches(2)] == [(1, 3), (1, 3), (1, 4), (1, 4)]


# Dataset


def test_batches_in_order():
    data = load_dataset(A, X)
    batches = [b["x"] for b in data.batches(3)]
    assert [len(b) for b in batches] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate(batches), A)
    with pytest.raises(OptionError, match="batch size must be 1 or more"):
        next(data.batches(0))


def test_samples():
    labelled = {"x": A, "labels": np.arange(7)}
    first = load_dataset(labelled, X, samples=4, seed=5)
    again = load_dataset(labelled, X, samples=4, seed=5)
    assert first.labels.tolist() == sorted(set(first.labels.tolist()))
    assert len(first) == 4
    assert first.digest() == again.digest()
    np.testing.assert_array_equal(rows(first), A[first.labels])
    assert {load_dataset(labelled, X, samples=4, seed=s).digest() for s in range(9)} != {
        first.digest()
    }
    assert load_dataset(labelled, X, samples=99).labels.tolist() == list(range(7))
    with pytest.raises(OptionError, match="samples must be 1 or more, not 0"):
        load_dataset(A, X, samples=0)


def test_subset_of_subset_and_digest():
    data = load_dataset({"x": A, "labels": np.arange(7)}, X)
    part = data.subset([6, 2, 4]).subset(np.array([2, 0]))
    assert part.labels.tolist() == [4, 6]
    np.testing.assert_array_equal(rows(part), A[[4, 6]])
    assert (
        len(
            {
                data.digest(),
                part.digest(),
                data.subset([6, 4]).digest(),
                load_dataset(A, X).digest(),
            }
        )
        == 4
    )


def test_split():
    data = load_dataset({"x": A, "labels": np.arange(7)}, X)
    for held_out, count in ((2, 2), (0.3, 2), (0.01, 1)):
        rest, held = split(data, held_out, seed=1)
        assert len(held) == count
        assert sorted([*rest.labels, *held.labels]) == list(range(7))
        assert list(held.labels) == sorted(held.labels)
    assert split(data, 2, seed=1)[1].digest() == split(data, 2, seed=1)[1].digest()
    for nonsense in (0, 1.0, -0.5, float("nan")):
        with pytest.raises(OptionError, match="held_out must be"):
            split(data, nonsense)
    for much in (7, 0.99):
        with pytest.raises(DataError, match="cannot hold out 7 of 7 samples"):
            split(data, much)


# labels and parts


def test_labels_in_a_folder(tmp_path):
    np.savez(tmp_path / "a.npz", x=A[:3], labels=np.array([1, 2, 3], np.uint8))
    np.savez(tmp_path / "b.npz", x=A[3:], labels=np.array([4, 5, 6, 7]))
    labels = load_dataset(tmp_path, X).labels
    assert labels.dtype == np.int64
    assert labels.tolist() == [1, 2, 3, 4, 5, 6, 7]
    np.savez(tmp_path / "c.npz", x=A)
    with pytest.raises(DataError, match="2 of 3 files have labels"):
        load_dataset(tmp_path, X)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(6), "expected 7 labels, found 6"),
        (np.array(3), "labels are a single value; give a label for each sample"),
        (np.array(["a"] * 6), "expected 7 labels, found 6"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(DataError, match=message):
        load_dataset({"x": A, "labels": labels}, X)


@pytest.mark.parametrize(
    "labels",
    [np.array(list("abcdefg")), np.arange(7.0), np.eye(7), np.zeros((7, 2, 3), "S4"),
     np.arange(7) > 3],
)  # fmt: skip
def test_labels_may_be_of_any_kind(tmp_path, labels):
    np.savez(tmp_path / "a.npz", x=A, labels=labels)
    for source in ({"x": A, "labels": labels}, tmp_path / "a.npz"):
        found = load_dataset(source, X)
        np.testing.assert_array_equal(found.labels, labels)
        np.testing.assert_array_equal(found.subset([4, 2]).sample_labels, labels[[4, 2]])
        assert found.digest() == load_dataset(source, X).digest()


def test_labels_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=A, labels=np.array([{}] * 7, dtype=object))
    with pytest.raises(DataError, match="pickled Python objects, which are never loaded"):
        load_dataset(tmp_path / "a.npz", X)


def test_input_may_be_called_labels():
    data = load_dataset({"labels": A}, (InputSpec("labels", FLOAT, (None, 3)),))
    assert data.labels is None
    assert len(data) == 7


@pytest.mark.parametrize("keep", ["file", "dict"])
def test_parts(tmp_path, keep):
    arrays = {"x": A[:4], "test.x": A[4:], "test.labels": np.array([7, 8, 9])}
    np.savez(tmp_path / "c.npz", **arrays)
    source = tmp_path / "c.npz" if keep == "file" else arrays
    assert has_part(source, "test")
    assert not has_part(source, "other")
    np.testing.assert_array_equal(rows(load_dataset(source, X)), A[:4])
    held = load_dataset(source, X, part="test")
    np.testing.assert_array_equal(rows(held), A[4:])
    assert held.labels.tolist() == [7, 8, 9]


def test_no_such_part(tmp_path):
    np.savez(tmp_path / "c.npz", x=A)
    assert not has_part(tmp_path / "c.npz")
    with pytest.raises(DataError, match=r"no part 'test'; expected keys test\.x \.\.\., found x"):
        load_dataset(tmp_path / "c.npz", X, part="test")
    assert not has_part(tmp_path)
    assert not has_part(A)
    for source in (tmp_path, A, [{"x": A}]):
        with pytest.raises(DataError, match=r"no part 'test': only an \.npz or a dict"):
            load_dataset(source, X, part="test")


# names, shapes, types, values


@pytest.mark.parametrize("arrays", [{"y": A}, {"x": A, "extra": A}, {}])
def test_names(tmp_path, arrays):
    np.savez(tmp_path / "c.npz", **arrays)
    found = f"expected arrays named x, found {', '.join(arrays) or 'none'}"
    for source in (tmp_path / "c.npz", arrays, [arrays]):
        with pytest.raises(DataError, match=found):
            load_dataset(source, X)


def test_names_of_a_dataset():
    with pytest.raises(DataError, match="a Dataset has no part 'test'"):
        load_dataset(load_dataset(A, X), X, part="test")
    with pytest.raises(DataError, match="expected arrays named z, found x"):
        load_dataset(load_dataset(A, X), (InputSpec("z", FLOAT, (None, 3)),))


@pytest.mark.parametrize("shape", [(7,), (7, 4), (2, 7, 4), (1, 1, 7, 3)])
def test_shapes(shape):
    with pytest.raises(DataError) as caught:
        load_dataset(np.zeros(shape, np.float32), X)
    assert f"input 'x' expects the shape (N, 3), found {shape}; axis 0 counts" in str(caught.value)
    assert caught.value.exit_code == 4


def test_ranks_that_differ_between_files(tmp_path):
    np.save(tmp_path / "a.npy", A)
    np.save(tmp_path / "b.npy", A[None])
    with pytest.raises(DataError, match=r"b\.npy: input 'x' .*\(1, 7, 3\), and another number"):
        load_dataset(tmp_path, X)
    np.save(tmp_path / "a.npy", A[0, 0])
    with pytest.raises(DataError, match=r"b\.npy: input 'x' .*, and another number"):
        load_dataset(tmp_path, (InputSpec("x", FLOAT, None),))


def test_shape_of_a_feed():
    with pytest.raises(DataError, match=r"item 1 of the list: input 'x' expects .*\(3,\)"):
        load_dataset([{"x": A}, {"x": A[0]}], X)


def test_ragged_samples_cannot_share_a_fixed_batch(tmp_path):
    for n in (3, 4):
        np.save(tmp_path / f"{n}.npy", np.zeros((1, n), np.float32))
    with pytest.raises(DataError, match="samples of different shapes"):
        load_dataset(tmp_path, (InputSpec("x", FLOAT, (2, None)),))


def test_different_counts(tmp_path):
    with pytest.raises(DataError, match="input 'x' has 7 samples, input 'ids' has 6"):
        load_dataset({"x": A, "ids": IDS[:6]}, XY)
    np.savez(tmp_path / "a.npz", x=A[:3], ids=IDS[:2])
    np.savez(tmp_path / "b.npz", x=A[3:5], ids=IDS[2:5])  # the sums agree
    with pytest.raises(DataError, match=r"a\.npz: input 'x' has 3 samples, input 'ids' has 2"):
        load_dataset(tmp_path, XY)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (np.float32, np.uint8, "'x' expects float32, found uint8; scale it as in training"),
        (np.float32, np.int64, r"'x' expects float32, found int64; convert it with \.astype"),
        (np.float32, np.bool_, "expects float32, found bool"),
        (np.float32, np.complex64, "expects float32, found complex64"),
        (np.int64, np.float32, "expects int64, found float32"),
        (np.bool_, np.int64, "expects bool, found int64"),
        (np.float32, "U3", "expects float32, found str"),
    ],
)
def test_types_that_are_refused(model, data, message):
    with pytest.raises(DataError, match=message):
        load_dataset(np.ones((7, 3)).astype(data), (InputSpec("x", np.dtype(model), (None, 3)),))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (np.float32, np.float64),
        (np.float32, np.float16),
        (np.float32, ">f4"),
        (np.float16, np.float64),
        (ml_dtypes.bfloat16, np.float32),
        (np.float32, ml_dtypes.bfloat16),
        (np.int32, np.int64),
        (np.int64, np.uint8),
        (np.uint8, np.int64),
        (np.bool_, np.bool_),
    ],
)
def test_types_that_are_cast(model, data):
    values = np.array([[0, 1, 1]] * 2).astype(data)
    for source in (values, [{"x": values}]):
        feed = load_dataset(source, (InputSpec("x", np.dtype(model), (None, 3)),)).feed(1)["x"]
        assert feed.dtype == np.dtype(model)
        np.testing.assert_array_equal(feed.astype(np.float64), [[0, 1, 1]])


@pytest.mark.parametrize(("model", "value"), [("int32", 2**31), ("uint8", -1), ("int64", 2**63)])
def test_integers_that_do_not_fit(model, value):
    values = np.zeros((7, 3), np.uint64 if value == 2**63 else np.int64)
    values[4, 1] = value
    with pytest.raises(DataError, match=rf"'x', sample 4: expected {model}, found values"):
        load_dataset(values, (InputSpec("x", np.dtype(model), (None, 3)),))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite(bad):
    values = A.astype(np.float64)
    values[5, 2] = bad
    with pytest.raises(DataError, match=r"the ndarray: input 'x', sample 5: NaN or infinity"):
        load_dataset(values, X)


def test_only_chosen_samples_are_looked_at():
    values = A.copy()
    chosen = np.random.default_rng(0).choice(7, 2, replace=False)
    values[np.setdiff1d(np.arange(7), chosen)] = np.nan
    assert len(load_dataset(values, X, samples=2)) == 2


# sources that are no good


def test_empty(tmp_path):
    (tmp_path / "nothing").mkdir()
    for source in (A[:0], {"x": A[:0]}, [], iter(()), [{"x": A[:0]}]):
        with pytest.raises(DataError, match="has no samples; give at least one"):
            load_dataset(source, X)
    np.save(tmp_path / "a.npy", A[:0])
    with pytest.raises(DataError, match=r"a\.npy: input 'x' has no samples"):
        load_dataset(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match="holds no samples; expected"):
        load_dataset(tmp_path / "nothing", X)
    with pytest.raises(DataError, match="no inputs to feed"):
        load_dataset(A, ())


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "folder", "a.py:feeds"])
def test_absent(tmp_path, name):
    with pytest.raises(DataError, match="no such file"):
        load_dataset(str(tmp_path / name), X)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_broken_files(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "npy":
        np.save(path, A)
    else:
        np.savez(path, x=A)
    whole = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"a\.{suffix}: not an array file, but an empty file"):
        load_dataset(path, X)
    for content in (b"junk", whole[:-5], whole[:20], whole[:150]):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"a\.{suffix}: cannot be read .*; write numeric arrays"
        ):
            load_dataset(path, X)


def test_truncated_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAP_IN_PLACE", 0)
    np.save(tmp_path / "a.npy", A)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "a.npy", X)


def test_damaged_member(tmp_path):
    np.savez(tmp_path / "a.npz", x=A)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "a.npz", X)


def test_foreign_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        load_dataset(tmp_path / "a.npz", X)


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_pickles_are_never_loaded(tmp_path):
    objects = np.array([Bomb()] * 7, dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match="pickled Python objects, which are never loaded"):
            load_dataset(tmp_path / name, X)
    for source in (objects, {"x": objects}, [{"x": objects}]):
        with pytest.raises(DataError, match="holds Python objects; give arrays of numbers"):
            load_dataset(source, X)
    with pytest.raises(DataError, match="the dict: not an array"):
        load_dataset({"x": [[1.0], [1.0, 2.0]]}, X)


def test_other_files(tmp_path):
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"a\.csv: not a source of samples; give \.npz, \.npy"):
        load_dataset(tmp_path / "a.csv", X)
    np.save(tmp_path / "a.npy", A)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds both arrays and images"):
        load_dataset(tmp_path, X, images=ImageOptions())


def test_arrays_without_a_name(tmp_path):
    np.save(tmp_path / "a.npy", A)
    for source in (A, tmp_path / "a.npy", tmp_path):
        with pytest.raises(DataError, match="each of the inputs x, ids, found one without a name"):
            load_dataset(source, XY)


def test_bad_tensors(tmp_path):
    folder = _tensors(tmp_path)
    file = folder / "test_data_set_7" / "input_1.pb"
    whole = file.read_bytes()
    for content, said in (
        (whole[:-3], "not a TensorProto, or truncated"),
        (b"\xff" * 30, "not a TensorProto, or truncated"),
        (b"", "not a TensorProto, but an empty file; copy it again"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"input_1\.pb: {said}"):
            load_dataset(folder, XY)
    file.unlink()
    with pytest.raises(DataError, match=r"one input_.*pb for each of the inputs x, ids, found 1"):
        load_dataset(folder, XY)


@pytest.mark.parametrize("source", [5, None, object()])
def test_no_source(source):
    with pytest.raises(DataError, match="is not a source of samples"):
        load_dataset(source, X)


def test_items_that_are_no_feeds():
    with pytest.raises(
        DataError, match=r"item 0 of the list: expected a dict .*\(x\), found ndarray"
    ):
        load_dataset([A], X)


# the user's code


def test_errors_of_a_users_function(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(
        "import sys\n\ndef bad():\n    return int('no')\n\ndef late():\n    yield {}[3]\n\n"
        "def stop():\n    sys.exit(3)\n"
    )
    with pytest.raises(
        DataError, match=r"own\.py:bad failed with ValueError: .*line 4 of .*own"
    ) as e:
        load_dataset(f"{file}:bad", X)
    assert isinstance(e.value.__cause__, ValueError)
    with pytest.raises(DataError, match=r"generator .late. failed with KeyError: 3 \(line 7 of"):
        load_dataset(f"{file}:late", X)
    with pytest.raises(DataError, match=r"own\.py:stop failed with SystemExit: 3"):
        load_dataset(f"{file}:stop", X)
    with pytest.raises(DataError, match="defines no function 'absent'"):
        load_dataset(f"{file}:absent", X)
    file.write_text("def oops(:\n")
    with pytest.raises(DataError, match=r"own\.py failed with SyntaxError: .*line 1"):
        load_dataset(f"{file}:oops", X)


def test_users_file_is_no_main_program(tmp_path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\n\nN = 4\n\ndef data():\n    return np.ones((N, 3), np.float32)\n\n"
        "if __name__ == '__main__':\n    raise SystemExit\n"
    )
    assert len(load_dataset(f"{tmp_path / 'own.py'}:data", X)) == 4


def test_failing_factory_and_reader():
    def broken():
        raise OSError("no disk")

    with pytest.raises(DataError, match=r"function .broken. failed with OSError") as caught:
        load_dataset(broken, X)
    assert isinstance(caught.value.__cause__, OSError)

    class Failing(Reader):
        def get_next(self):
            raise RuntimeError("lost")

    with pytest.raises(DataError, match="the Failing failed with RuntimeError: lost"):
        load_dataset(Failing(), X)


def test_factory_that_is_a_class():
    assert len(load_dataset(Rewinding, XY)) == 7


def test_a_usual_run_is_of_median_length() -> None:
    """Costs and times are those of a run as long as most, not of the first."""
    specs = [InputSpec("x", np.dtype(np.float32), (None, None))]
    runs = [{"x": np.zeros((1, n), np.float32)} for n in (90, 3, 4, 70, 5, 6, 4)]
    data = load_dataset(runs, specs)
    assert runs[data.typical]["x"].shape == (1, 5)
    assert data.subset([1, 0]).typical == 1  # the longer of two
    alike = load_dataset(np.zeros((6, 4), np.float32), specs)
    assert alike.typical == 0
