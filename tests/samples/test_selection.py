"""Which samples are chosen: by the inputs, by a model's features, at random, from larger data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from onnx import helper

from onnx_lowrank.cli import main as cli
from onnx_lowrank.engine.api import apply, plan
from onnx_lowrank.engine.select import select
from onnx_lowrank.errors import DataError, OptionError, PlanError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import load_dataset
from onnx_lowrank.samples.features import WIDTH, features_of_inputs, features_of_model
from onnx_lowrank.samples.feeds import InputSpec
from onnx_lowrank.samples.split import CalibrationOptions
from tests import fixtures_models as fm
from tests.scripted_timer import taking

Capture = pytest.CaptureFixture[str]
MLP = fm.digits("mlp")


def planted(copies: int = 3) -> npt.NDArray[np.float32]:
    """Three long samples in orthogonal directions, each ``copies`` times, among short mixtures."""
    rng = np.random.default_rng(1)
    corners = 3 * np.linalg.qr(rng.standard_normal((64, 3)))[0].T
    mixed = rng.dirichlet(np.ones(3), 40) @ corners
    return np.concatenate([mixed, np.repeat(corners, copies, axis=0)]).astype(np.float32)


@pytest.mark.parametrize("by", ["l21", "decorrelated"])
def test_planted_samples_are_chosen_once_each(by: str) -> None:
    chosen = select({"x": planted()}, samples=3, by=by)
    assert chosen.indices == (40, 43, 46)
    assert chosen.samples.arrays()["x"] == pytest.approx(planted()[[40, 43, 46]])


def test_where_few_differ_the_rest_is_drawn() -> None:
    same = np.repeat(planted(1)[-3:], 5, axis=0)
    chosen = select({"x": same}, samples=7)
    assert {0, 5, 10} < set(chosen.indices)
    assert len(set(chosen.indices)) == 7
    assert "4 more at random" in chosen.said[-1]


def test_a_model_compares_by_what_its_last_layer_reads() -> None:
    """Two inputs that differ where the first layer is blind are copies by the model alone."""
    rng = np.random.default_rng(0)
    w = fm.float32(rng.standard_normal((6, 4)))
    w[5] = 0  # the last column of an input is not seen
    proto = fm.build(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        {"x": ["n", 6]},
        {"y": ["n", 3]},
        {"w": w, "v": fm.float32(rng.standard_normal((4, 3)))},
    )
    x = fm.float32(rng.standard_normal((20, 6)))
    twins = x.copy()
    twins[:, 5] += 9
    data = fm.dataset(proto, {"x": np.concatenate([x, twins])})
    found = features_of_model(load(proto), data, Runtime(threads=1))
    assert found.values[:20] == pytest.approx(found.values[20:])
    inner = np.maximum(x @ w, 0)
    scale = np.sqrt((inner**2).sum() / 20)
    assert found.values[:20] == pytest.approx(inner / scale, rel=1e-5)
    chosen = select({"x": np.concatenate([x, twins])}, model=proto, samples=8, threads=1)
    assert len({i % 20 for i in chosen.indices}) == 8


def test_convolutions_are_averaged_over_places() -> None:
    net = fm.residual_net(8)
    data = fm.dataset(net, {"x": fm.pictures(4)})
    found = features_of_model(load(net), data, Runtime(threads=1))
    assert found.values.shape[0] == 4
    assert found.values.shape[1] <= WIDTH
    assert found.source == "what the last layers read"


def test_folding_keeps_products_on_average() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 5000))
    data = fm.dataset(_identity(5000), {"x": x.astype(np.float32)})
    plain = x @ x.T / ((x**2).sum() / 3)
    folded = [features_of_inputs(data, seed).values for seed in range(60)]
    assert folded[0].shape == (3, WIDTH)
    # a fold scatters by about the square root of 2 / WIDTH
    assert np.mean([f @ f.T for f in folded], axis=0) == pytest.approx(plain, abs=0.06)
    assert not np.array_equal(folded[0], folded[1])


def _identity(width: int) -> fm.ModelProto:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return fm.build(nodes, {"x": ["n", width]}, {"y": ["n", width]}, {})


def test_tokens_are_counted_wherever_they_stand() -> None:
    tokens = np.array([[7, 8, 9, 7], [9, 7, 7, 8], [1, 2, 3, 4]])
    data = load_dataset({"x": tokens}, [InputSpec("x", np.dtype(np.int64), (None, 4))])
    values = features_of_inputs(data).values
    assert values[0] == pytest.approx(values[1])
    assert np.abs(values[0] - values[2]).max() > 0.1


def test_data_larger_than_what_is_held(tmp_path: Path) -> None:
    """Features of a mapped file are made a sample at a time."""
    import tracemalloc

    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (600, 1 << 15))
    x[:] = np.random.default_rng(0).standard_normal((600, 1)).astype(np.float32)
    x.flush()
    data = fm.dataset(_identity(1 << 15), tmp_path / "x.npy")
    tracemalloc.start()
    features_of_inputs(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 < x.nbytes // 8


@pytest.mark.parametrize("by", ["l21", "decorrelated", "random"])
def test_the_command_writes_the_same_bytes_and_says_which(
    tmp_path: Path, capsys: Capture, by: str
) -> None:
    rng = np.random.default_rng(0)
    arrays = {"input": fm.float32(rng.random((60, 1, 8, 8))), "labels": np.arange(60)}
    held = {"test.input": arrays["input"][:5], "test.labels": np.arange(5)}
    np.savez(tmp_path / "data.npz", **arrays, **held)
    base = ["select", str(tmp_path / "data.npz")]
    rest = ["--samples", "6", "--by", by, "--seed", "3", "--json"]
    for name in ("a.npz", "b.npz"):
        assert cli.main([*base, str(tmp_path / name), *rest]) == 0
    told = json.loads(capsys.readouterr().out.split("\n}\n")[0] + "\n}")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert told["total"] == 60
    with np.load(tmp_path / "a.npz") as out:
        assert out["labels"].tolist() == told["indices"]
        assert np.array_equal(out["input"], arrays["input"][told["indices"]])
        assert np.array_equal(out["test.input"], held["test.input"])
        assert np.array_equal(out["test.labels"], held["test.labels"])


def test_what_cannot_be_chosen_is_refused(tmp_path: Path, capsys: Capture) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 3), np.float32))
    out = str(tmp_path / "out.npz")
    npy = str(tmp_path / "x.npy")
    fm.refused(["select", npy, out], capsys, 2, "does not name its arrays", "--model")
    fm.refused(["select", npy, str(tmp_path / "out.npy")], capsys, 2, "written as .npz")
    fm.refused(["select", npy, out, "--samples", "0"], capsys, 2, "samples must be 1 or more")
    assert not Path(out).exists()
    with pytest.raises(OptionError, match="no selection 'best'; there are random, l21"):
        select({"x": np.zeros((4, 3))}, by="best")
    with pytest.raises(DataError, match="texts"):
        select({"x": np.array(["a", "b"])}, samples=1)
    with pytest.raises(OptionError, match="give --samples N"):
        CalibrationOptions(select="l21")
    with pytest.raises(OptionError, match="give --calib"):
        plan(MLP, samples=3, select="l21")


def test_runs_of_different_lengths_go_to_compress_alone() -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["s"], axis=0),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    w = fm.float32(np.random.default_rng(0).standard_normal((4, 4)))
    proto = fm.build(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": w})
    runs = [{"x": fm.float32(np.random.default_rng(i).random((2 + i, 4)))} for i in range(5)]
    chosen = select(runs, model=proto, samples=3, threads=1)
    assert len(chosen.indices) == 3
    with pytest.raises(DataError, match="leave the selection to compress --select"):
        chosen.samples.arrays()


def test_a_plan_by_selected_samples_is_repeated_byte_for_byte(tmp_path: Path) -> None:
    options = {"threads": 1, "timer": taking(0.5)}
    x = {"image": fm.float32(np.random.default_rng(0).random((80, 1, 16, 16)))}
    made = plan(
        MLP, calib=x, target="macs=0.5", passes="svd", effort="quick", samples=30, select="l21",
        **options,
    )  # fmt: skip
    assert made.select == "l21"
    again = apply(MLP, Plan.from_json(made.to_json()), calib=x, force=True, **options)
    assert made.data == again.report.basis.data
    assert "30 of 80 samples selected by l21 on what the last layers read" in again.report.said
    with pytest.raises(PlanError, match="no selection"):
        Plan.from_json(made.to_json().replace('"l21"', '"l12"'))
