"""The benchmarks on a small net: figures that two ways of computing them agree on."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks import ablation, alone, effort, layers, pruning, real_models, search
from benchmarks.layers import Case, Study
from benchmarks.models import Benchmark, Samples
from onnx_lowrank.engine.curves import RATIOS, curves
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.registry import available
from tests import fixtures_models as fm
from tests.support import layers_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tiny: Path) -> Study:
    def read() -> Samples:
        with np.load(tiny / "data.npz") as archive:
            return dict(archive)

    benchmark = Benchmark(tiny / "tiny.onnx", read, None, (0.5,))
    return layers.study("tiny", benchmark, ["svd", "tensor_train"], samples=150)


def test_layers_have_their_kinds(found: Study) -> None:
    assert found.layers == {"first": "first", "second": "dense"}
    kinds = [layers.kind_of(la, n == 0) for n, la in enumerate(layers_of(fm.residual_net()))]
    assert kinds[:2] == ["first", "k x k"]
    assert set(kinds) <= {"first", "k x k", "1 x 1", "dense"}


def test_errors_are_those_of_the_curves(found: Study, tiny: Path) -> None:
    with np.load(tiny / "data.npz") as archive:
        order = np.random.default_rng(0).permutation(len(archive["x"]))
        drawn = archive["x"][order[:150]]
    drawn_curves = curves(tiny / "tiny.onnx", calib=drawn, passes="svd", threads=1)
    cases = [c for c in found.cases if c.method == "svd" and c.metric == "covariance"]
    assert {c.layer for c in cases} == {"first", "second"}
    for case in cases:
        (curve,) = drawn_curves.of(case.layer)
        error = curve.error_at(case.ratio)
        assert error is not None
        assert abs(case.error - error) < 1e-9
        assert case.macs <= case.ratio


def test_what_is_fitted_to_responses_is_better_on_them(found: Study) -> None:
    by_key = {(c.layer, c.method, c.ratio, c.metric): c for c in found.cases}
    pairs = 0
    for (layer, method, ratio, metric), case in by_key.items():
        if metric == "covariance":
            weights = by_key[layer, method, ratio, "identity"]
            assert case.error <= weights.error * (1 + 1e-9)
            assert case.held_out < 1
            assert case.held_out != case.error
            pairs += 1
    assert pairs > len(RATIOS)


def test_every_layer_has_one_winner_at_each_ratio(found: Study) -> None:
    text = layers.tables(found)
    assert text.index("tiny, first, 1 layers") < text.index("tiny, dense, 1 layers")
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert {row[0] for row in rows} == {"`svd`", "`tensor_train`"}
    won = sum(int(count) for row in rows for count in row[5].split(" / "))
    assert won == len({(c.layer, c.ratio) for c in found.cases})


def test_table() -> None:
    case = Case("a", "first", "m", "covariance", 0.5, 0.4, 0.4, "", 0.04, 0.05)
    cases = [
        replace(case, metric="identity", error=0.2),
        case,
        replace(case, layer="b", error=0.01, held_out=0.0125),
        replace(case, method="n", error=0.02, held_out=0.06),
    ]
    kinds = {"a": "first", "b": "first", "c": "dense"}
    text = layers.tables(Study("net", kinds, tuple(cases), {"m": {"x": 1.2}, "n": {"x": 3.0}}))
    lines = text.strip().splitlines()
    assert lines[0] == "net, first, 2 layers"
    # of 0.04 and 0.01 the geometric mean is 0.02; n wins nothing, being worse on other samples
    assert lines[4] == "| `m` | - | 0.2 / 0.02 / 0.025 | - | - | 0 / 2 / 0 / 0 | 1 |"
    assert lines[5] == "| `n` | - | - / 0.02 / 0.06 (1) | - | - | 0 / 0 / 0 / 0 | 3 |"


@pytest.mark.parametrize(("ratio", "wanted"), [(0.1, None), (0.2, 4), (0.5, 8), (1.0, 8)])
def test_best_within(ratio: float, wanted: int | None) -> None:
    def candidate(rank: int, error: float, macs: int) -> Candidate:
        return Candidate("m" if rank else "", "", rank, error, macs, macs, macs, macs)

    choice = Choice(
        "a", (candidate(0, 0.0, 100), candidate(4, 0.3, 20), candidate(8, 0.1, 40),
              candidate(9, 0.2, 50)),
    )  # fmt: skip
    best = layers.best_within(choice, ratio)
    assert (None if best is None else best.rank) == wanted


def test_in_front_of_a_sum_an_error_weighs_less(tmp_path: Path) -> None:
    proto, x = fm.residual_net(), fm.pictures(400)
    onnx.save(proto, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **{"x": x, "test.x": x[:8]})
    benchmark = Benchmark(tmp_path / "net.onnx", dict, None, (0.5,))
    weights = alone.layer_weights(benchmark, tmp_path / "data.npz")

    for name in ("b0", "b1", "c0", "c1"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    seen = fm.run(proto, {"x": x})
    spread = {name: seen[name].var(axis=(0, 2, 3)).sum() for name in seen}
    expected = {"conv0": 1.0, "conv1": spread["b0"] / spread["b1"],
                "conv2": spread["c0"] / spread["c1"], "conv3": 1.0}  # fmt: skip
    # the moments are shrunk by what 19,600 rows leave in doubt
    assert weights == pytest.approx(expected, rel=0.01, abs=0)


def test_every_factorization_is_run_alone() -> None:
    lists = alone.lists_of_passes()
    names = {n for n, cls in available().items() if issubclass(cls, Factorization)}
    assert lists.keys() == {*names, "default", "all but bicluster"}
    for name in names:
        assert lists[name] == f"fold_batchnorm,{name}"
        assert (name in lists["all but bicluster"].split(",")) == (name != "bicluster")


def test_documented_commands_are_understood() -> None:
    pages = [ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
    parsers = {
        "benchmarks.ablation": ablation.parser(),
        "benchmarks.effort": effort.parser(),
        "benchmarks.layers": layers.parser(),
        "benchmarks.alone": alone.parser(),
        "benchmarks.pruning": pruning.parser(),
        "benchmarks.real_models": real_models.parser(),
        "benchmarks.search": search.parser(),
    }
    seen = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for module, options in re.findall(r"^ +.*python -m (benchmarks\.\w+)(.*)$", text, re.M):
            parsers[module].parse_args(shlex.split(options))
            seen.add(module)
    assert seen == set(parsers)
