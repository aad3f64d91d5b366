"""Whether a source is read as runs or as rows that are samples, decided by running the model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank import apply, compress, plan
from onnx_lowrank.engine.curves import curves
from onnx_lowrank.engine.validate import validate
from onnx_lowrank.errors import DataError
from onnx_lowrank.judge.requirement import Requirement
from onnx_lowrank.judge.scoring import scorer_for
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset, input_specs, load_dataset
from onnx_lowrank.samples.row_trial import RowTrial
from tests import fixtures_models as fm
from tests.scripted_timer import taking

WIDTH = 16


def values(*shape: int, seed: int = 0) -> fm.AnyArray:
    return fm.float32(np.random.default_rng(seed).standard_normal(shape))


def node(op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def shape_of(*sizes: int) -> fm.AnyArray:
    return np.array(sizes, np.int64)


# models; all weights are made up


def by_rows() -> ModelProto:
    """Class scores of each row."""
    return fm.build([node("MatMul", "x w", "y")], {"x": ["N", WIDTH]}, {"y": ["N", 4]},
                    {"w": values(WIDTH, 4)})  # fmt: skip


def attention(first: Any = "T", pooled: bool = True) -> ModelProto:
    """Self-attention over axis 0, then one vector of class scores, or one for each row."""
    nodes = [
        node("MatMul", "x wq", "q"), node("MatMul", "x wk", "k"), node("MatMul", "x wv", "v"),
        node("Transpose", "k", "t", perm=[1, 0]), node("MatMul", "q t", "s"),
        node("Softmax", "s", "p", axis=1), node("MatMul", "p v", "o"),
        *([node("ReduceMax", "o", "m", axes=[0], keepdims=0)] if pooled else []),
        node("MatMul", "m w" if pooled else "o w", "y"),
    ]  # fmt: skip
    weights = {n: values(WIDTH, WIDTH, seed=i) / 4 for i, n in enumerate(("wq", "wk", "wv"), 1)}
    return fm.build(nodes, {"x": [first, WIDTH]}, {"y": [4] if pooled else [first, 4]},
                    {**weights, "w": values(WIDTH, 4, seed=4)})  # fmt: skip


def pooled_last() -> ModelProto:
    """The largest response over axis 0; no layer stands behind."""
    nodes = [node("MatMul", "x w", "h"), node("ReduceMax", "h", "y", axes=[0], keepdims=0)]
    return fm.build(nodes, {"x": ["P", WIDTH]}, {"y": [4]}, {"w": values(WIDTH, 4)})


def with_mean() -> ModelProto:
    """Class scores of each row, and their mean over all rows."""
    nodes = [node("MatMul", "x w", "y"), node("ReduceMean", "y", "mean", keepdims=0)]
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", 4], "mean": []},
                    {"w": values(WIDTH, 4)})  # fmt: skip


def with_constant() -> ModelProto:
    """Class scores of each row, and a table that depends on nothing."""
    nodes = [node("MatMul", "x w", "y"), node("Identity", "w", "table")]
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", 4], "table": [WIDTH, 4]},
                    {"w": values(WIDTH, 4)})  # fmt: skip


def scaled_by_batch() -> ModelProto:
    """Rows rounded to a grid of the largest value in the batch, as dynamic quantization does."""
    nodes = [
        node("Abs", "x", "a"), node("ReduceMax", "a", "top", keepdims=0),
        node("Div", "top levels", "step"), node("Div", "x step", "d"), node("Round", "d", "r"),
        node("Mul", "r step", "q"), node("MatMul", "q w", "y"),
    ]  # fmt: skip
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", 4]},
                    {"w": values(WIDTH, 4), "levels": np.float32(40)})  # fmt: skip


def noisy() -> ModelProto:
    """Rows with noise that is drawn anew in each run."""
    nodes = [node("RandomNormalLike", "x", "noise"), node("Add", "x noise", "h"),
             node("MatMul", "h w", "y")]  # fmt: skip
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": ["N", 4]}, {"w": values(WIDTH, 4)})


def with_sequence() -> ModelProto:
    """Class scores of each row, in a sequence of one tensor."""
    nodes = [node("MatMul", "x w", "h"), node("SequenceConstruct", "h", "y")]
    proto = fm.build(nodes, {"x": ["N", WIDTH]}, {"y": None}, {"w": values(WIDTH, 4)})
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["N", 4])
    )
    return proto


def baked(batch: int) -> ModelProto:
    """A batch written into a Reshape, the input declared dynamic."""
    nodes = [node("Reshape", "x shape", "r"), node("MatMul", "r w", "y")]
    return fm.build(nodes, {"x": ["N", WIDTH]}, {"y": [batch, WIDTH]},
                    {"w": values(WIDTH, WIDTH), "shape": shape_of(batch, WIDTH)})  # fmt: skip


def graph_net() -> ModelProto:
    """Nodes that read their neighbours; edges ``(2, E)`` beside features ``(N, WIDTH)``."""
    nodes = [node("Gather", "edges first", "senders", axis=0), node("Gather", "x senders", "g"),
             node("ReduceMean", "g", "m", axes=[0]), node("Add", "x m", "h"),
             node("MatMul", "h w", "y")]  # fmt: skip
    proto = fm.build(nodes, {"x": ["N", WIDTH], "edges": [2, "E"]}, {"y": None},
                     {"w": values(WIDTH, 4), "first": np.int64(0)})  # fmt: skip
    proto.graph.input[1].type.tensor_type.elem_type = TensorProto.INT64
    return proto


def with_prior() -> ModelProto:
    """A table of a fixed shape that is an input."""
    nodes = [node("MatMul", "prior w", "p"), node("MatMul", "x w", "h"),
             node("ReduceSum", "p axes", "s"), node("Add", "h s", "y")]  # fmt: skip
    return fm.build(nodes, {"prior": [5, WIDTH], "x": ["N", WIDTH]}, {"y": ["N", 4]},
                    {"w": values(WIDTH, 4), "axes": shape_of(0)})  # fmt: skip


# sources of 6 runs


class Reader:
    """As ONNX Runtime's CalibrationDataReader."""

    def __init__(self, feeds: list[dict[str, fm.AnyArray]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, fm.AnyArray] | None:
        return next(self._feeds, None)


def tensor_files(folder: Path, runs: list[fm.AnyArray]) -> Path:
    for i, run in enumerate(runs):
        sample = folder / f"test_data_set_{i}"
        sample.mkdir()
        tensor = numpy_helper.from_array(run, "x")
        (sample / "input_0.pb").write_bytes(tensor.SerializeToString())
    return folder


def arrays(folder: Path, runs: list[fm.AnyArray], save: Callable[..., None]) -> Path:
    for i, run in enumerate(runs):
        save(folder / f"{i}", run) if save is np.save else save(folder / f"{i}", x=run)
    return folder


SOURCES: dict[str, Callable[[Path, list[fm.AnyArray]], Any]] = {
    "feeds": lambda folder, runs: [{"x": r} for r in runs],
    "function": lambda folder, runs: lambda: ({"x": r} for r in runs),
    "reader": lambda folder, runs: Reader([{"x": r} for r in runs]),
    "test_data_set": tensor_files,
    "npy": lambda folder, runs: arrays(folder, runs, np.save),
    "npz": lambda folder, runs: arrays(folder, runs, np.savez),
}


def opened(proto: ModelProto, source: Any, **options: Any) -> Dataset:
    model = load(proto)
    trial = RowTrial(model, Runtime(threads=1))
    return load_dataset(source, input_specs(model), trial=trial, **options)


def shapes(data: Dataset, name: str = "x") -> list[tuple[int, ...]]:
    return [data.feed(i)[name].shape for i in range(len(data))]


def runs_of(*lengths: int) -> list[fm.AnyArray]:
    return [values(n, WIDTH, seed=10 + i) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("model", [attention, lambda: attention(pooled=False), pooled_last])
def test_runs_of_a_model_without_a_batch_stay_whole(
    tmp_path: Path, source: str, model: Callable[[], ModelProto]
) -> None:
    runs = runs_of(*[12] * 6)
    data = opened(model(), SOURCES[source](tmp_path, runs))
    assert shapes(data) == [(12, WIDTH)] * 6
    assert not data.batchable
    for i, run in enumerate(runs):
        np.testing.assert_array_equal(data.feed(i)["x"], run)
        assert data.samples_in(data.feed(i)) == 1
    (note,) = data.notes
    assert f"6 runs of shape (12, {WIDTH}), run one at a time, because " in note


@pytest.mark.parametrize("source", SOURCES)
def test_rows_that_are_samples_are_merged(tmp_path: Path, source: str) -> None:
    for model in (by_rows, with_constant):
        folder = tmp_path / model.__name__
        folder.mkdir()
        data = opened(model(), SOURCES[source](folder, runs_of(2, 1, 3)))
        assert shapes(data) == [(1, WIDTH)] * 6
        assert data.batchable
        assert data.notes == ()
        assert [data.samples_in(feed) for feed in data.batches(4)] == [4, 2]


@pytest.mark.parametrize("source", SOURCES)
def test_runs_of_different_length(tmp_path: Path, source: str) -> None:
    data = opened(attention(), SOURCES[source](tmp_path, runs_of(12, 5, 9)))
    assert shapes(data) == [(12, WIDTH), (5, WIDTH), (9, WIDTH)]
    assert "3 runs of different shapes, (12, 16) first, run one at a time" in data.notes[0]


@pytest.mark.parametrize("source", SOURCES)
def test_one_row_is_the_only_batch(tmp_path: Path, source: str) -> None:
    data = opened(baked(1), SOURCES[source](tmp_path, runs_of(*[1] * 6)))
    assert shapes(data) == [(1, WIDTH)] * 6
    assert [feed["x"].shape for feed in data.batches(4)] == [(1, WIDTH)] * 6
    assert "run one at a time, because the model runs on one row only" in data.notes[0]


@pytest.mark.parametrize("source", SOURCES)
def test_batch_in_a_reshape(tmp_path: Path, source: str) -> None:
    data = opened(baked(4), SOURCES[source](tmp_path, runs_of(4, 4, 4)))
    assert shapes(data) == [(4, WIDTH)] * 3
    assert not data.batchable


ARCHIVES: dict[str, tuple[Callable[[], ModelProto], tuple[int, ...], int, tuple[int, ...], str]] = {
    "rows": (by_rows, (9, WIDTH), 9, (1, WIDTH), ""),
    "stacked": (attention, (9, 12, WIDTH), 9, (12, WIDTH), "the arrays have one axis more"),
    "one run": (attention, (9, WIDTH), 1, (9, WIDTH), "change each other's results"),
    "one run, an output a row": (lambda: attention(pooled=False), (9, WIDTH), 1, (9, WIDTH),
                                 "change each other's results"),
    "one run, nothing behind": (pooled_last, (9, WIDTH), 1, (9, WIDTH), "no axis for several rows"),
    "rows and a mean of them": (with_mean, (9, WIDTH), 9, (1, WIDTH), "no axis for several rows"),
    "quantized by the batch": (scaled_by_batch, (9, WIDTH), 9, (1, WIDTH), "slightly"),
    "random": (noisy, (9, WIDTH), 9, (1, WIDTH), "no output depends on the input alone"),
    "sequence": (with_sequence, (9, WIDTH), 9, (1, WIDTH), ""),
    "one row only": (lambda: baked(1), (9, WIDTH), 9, (1, WIDTH), "on one row only"),
    "four rows only": (lambda: baked(4), (9, WIDTH), 2, (4, WIDTH), "runs on 4 rows only"),
    "fixed": (lambda: attention(12), (24, WIDTH), 2, (12, WIDTH), "axis 0 is fixed"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives(case: str) -> None:
    model, given, count, shape, reason = ARCHIVES[case]
    data = opened(model(), {"x": values(*given)})
    assert shapes(data) == [shape] * count
    assert data.batchable == (not reason)
    assert reason in " ".join(data.notes)
    for feed in data.batches(4):
        fm.run(model(), feed)  # every batch runs


def test_labels_say_what_a_sample_is() -> None:
    data = opened(attention(pooled=False), {"x": values(9, WIDTH), "labels": np.arange(9)})
    assert len(data) == 9
    assert not data.batchable
    data = opened(attention(12), {"x": values(24, WIDTH), "labels": np.array([3, 1])})
    assert data.labels is not None
    assert data.labels.tolist() == [3, 1]


def test_labels_in_files_of_one_run(tmp_path: Path) -> None:
    for i, run in enumerate(runs_of(12, 5, 9)):
        np.savez(tmp_path / f"{i}.npz", x=run, labels=i)
    data = opened(attention(), tmp_path)
    assert len(data) == 3
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1, 2]
    assert data.subset([2, 0]).labels is not None
    assert shapes(data.subset([2, 0])) == [(9, WIDTH), (12, WIDTH)]


def test_inputs_that_count_other_things(tmp_path: Path) -> None:
    feeds = [{"x": x, "edges": np.array([[0, 1], [1, 2]])} for x in runs_of(12, 5, 9)]
    for i, feed in enumerate(feeds):
        np.savez(tmp_path / f"{i}.npz", **feed)
    for source in (feeds, tmp_path):
        assert shapes(opened(graph_net(), source)) == [(12, WIDTH), (5, WIDTH), (9, WIDTH)]
    assert shapes(opened(graph_net(), feeds[0])) == [(12, WIDTH)]
    with pytest.raises(DataError, match="give the same number"):
        load_dataset(feeds[0], input_specs(load(graph_net())))


def test_an_input_that_all_samples_share() -> None:
    prior = values(5, WIDTH, seed=3)
    data = opened(with_prior(), {"x": values(6, WIDTH), "prior": prior})
    assert shapes(data) == [(1, WIDTH)] * 6
    np.testing.assert_array_equal(data.feed(4)["prior"], prior)
    assert data.samples_in(data.feed(0)) == 1
    assert "an input is the same for all of them" in data.notes[0]
    every = validate(with_prior(), with_prior(), {"x": values(6, WIDTH), "prior": prior}, threads=1)
    assert every.samples == 6


def test_a_fixed_batch_of_samples_counts_them() -> None:
    fixed = by_rows()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    data = opened(fixed, [{"x": x} for x in runs_of(3, 3)])
    assert data.samples_in(data.feed(0)) == 3
    whole = opened(attention(12), [{"x": x} for x in runs_of(12, 12)])
    assert whole.samples_in(whole.feed(0)) == 1


@pytest.mark.parametrize("length", [1, 12])
def test_samples_that_are_alike_still_show_what_rows_are(length: int) -> None:
    one = np.ones((length, WIDTH), np.float32)
    mixing = opened(attention(pooled=False), [{"x": one}] * 3)
    assert shapes(mixing) == [(length, WIDTH)] * 3
    assert not mixing.batchable
    assert opened(by_rows(), [{"x": one}] * 3).batchable


def test_what_does_not_run_is_left_to_who_runs_it() -> None:
    assert len(opened(baked(80), {"x": values(9, WIDTH)})) in (1, 9)


# what a run is counted as


def test_class_scores_of_a_run(tmp_path: Path) -> None:
    x, model = values(40, 12, WIDTH), attention()
    first = np.array([fm.run(model, {"x": run})["y"].argmax() for run in x])
    labels = np.where(np.arange(40) < 30, first, (first + 1) % 4)
    found = validate(model, model, {"x": x, "labels": labels}, threads=1)
    assert found.accuracy is not None
    assert (found.samples, found.accuracy.samples, found.accuracy.reference) == (40, 40, 0.75)
    assert found.outputs[0].top1_agreement == 1.0
    data = opened(model, {"x": x, "labels": labels})
    for requirement in (Requirement("drop", 0.01), Requirement("agreement", 0.9),
                        Requirement("snr", 10.0)):  # fmt: skip
        scorer = scorer_for(requirement, load(model), data, Runtime(threads=1), 16)
        assert scorer.score(load(model)).samples == 40


def test_labels_of_runs_are_not_held_against_rows() -> None:
    model = attention(pooled=False)
    data = {"x": values(6, 12, WIDTH), "labels": np.zeros(6, int)}
    assert validate(model, model, data, threads=1).accuracy is None


# the whole way


def macs(rows: int) -> int:
    return 3 * rows * WIDTH * WIDTH + 2 * rows * rows * WIDTH + 4 * WIDTH


#: options of every run
RUN: dict[str, Any] = {"threads": 1, "cache": "", "timer": taking(0.5)}


def options() -> dict[str, Any]:
    return {"target": "macs=0.8", "passes": "svd", "effort": "quick", **RUN}


def test_errors_and_costs_are_those_of_runs() -> None:
    model = attention()
    result = compress(model, calib=lambda: ({"x": x} for x in values(60, 12, WIDTH, seed=5)),
                      force=True, **options())  # fmt: skip
    assert result.report.before.macs == macs(12)
    assert "60 runs of shape (12, 16), run one at a time" in result.report.said[0]
    fresh = validate(model, result.model, {"x": values(400, 12, WIDTH, seed=6)}, threads=1)
    reported = result.report.validation
    assert reported.samples == 12
    true = fresh.outputs[0].relative_error
    assert reported.outputs[0].relative_error == pytest.approx(true, rel=0.5)
    assert [pair.batch for pair in result.report.latency] == [1]


def test_plan_and_apply_and_curves_read_alike(tmp_path: Path) -> None:
    runs = runs_of(*([12, 5, 9] * 8))
    folder = SOURCES["test_data_set"](tmp_path, runs)
    model = attention()
    planned = plan(model, calib=folder, **options())
    made = apply(model, planned, calib=folder, force=True, **RUN)
    assert made.plan.digest == planned.digest
    assert not any("not that of the plan" in note for note in made.report.said)
    assert made.report.before.macs in {macs(n) for n in (12, 5, 9)}
    seen = curves(model, calib=folder, passes="svd", threads=1)
    assert seen.samples == 24
    assert "24 runs of different shapes" in seen.notes[0]


@pytest.mark.parametrize("length", [1, 12])
def test_one_run_is_enough(tmp_path: Path, length: int) -> None:
    folder = SOURCES["test_data_set"](tmp_path, runs_of(length))
    result = compress(attention(), calib=folder, force=True, **options())
    assert result.report.before.macs == macs(length)
    assert any("one sample only: it served to calibrate and to validate" in n
               for n in result.report.said)  # fmt: skip
    assert math.isfinite(result.report.validation.outputs[0].relative_error)


def test_without_data_the_shape_that_is_given_counts() -> None:
    given = {"x": (12, WIDTH)}
    result = compress(attention(), input_shapes=given, force=True, **options())
    assert result.report.before.macs == macs(12)
    result = compress(attention(), force=True, **options())
    assert result.report.before.macs == macs(1)
    assert any("give --input-shape or --calib" in note for note in result.report.said)


def test_batch_in_a_reshape_goes_the_whole_way() -> None:
    model = baked(4)
    result = compress(model, calib={"x": values(42, WIDTH)}, force=True,
                      **{**options(), "target": "macs=0.9"})  # fmt: skip
    notes = " ".join(result.report.said)
    assert "10 runs of shape (4, 16), run one at a time, because the model runs on 4 rows" in notes
    assert "the last 2 of 42 samples" in notes
