"""The benchmark of layers on a small net: figures that two ways of computing them agree on."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import parser
from benchmarks.command import measured
from benchmarks.commands import layers
from benchmarks.commands.layers import COMMAND, RATIOS, Case
from benchmarks.nets import NETS, Net, Samples
from benchmarks.rows import Cell, Row
from onnx_lowrank.engine.curves import curves
from onnx_lowrank.planning.candidates import Candidate, Choice
from tests import fixtures_models as fm
from tests.support import layers_of

SAMPLES = 150


@pytest.fixture(scope="module")
def found(tiny: Path) -> list[Row]:
    def read() -> Samples:
        with np.load(tiny / "data.npz") as archive:
            return dict(archive)

    methods = ["--methods", "svd", "tensor_train", "--samples", str(SAMPLES)]
    arguments = parser().parse_args(["layers", *methods])
    arguments.models = ["tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETS, "tiny", Net(tiny / "tiny.onnx", read, None))
        return list(measured(COMMAND, arguments, {}))


def cases_of(row: Row) -> list[Case]:
    return [Case(**case) for case in row.details["cases"]]


def test_a_row_for_each_method_and_metric(found: list[Row]) -> None:
    assert [(r.options["method"], r.options["metric"]) for r in found] == [
        (method, metric)
        for method in ("svd", "tensor_train")
        for metric in ("identity", "covariance")
    ]
    for row in found:
        assert row.samples == {"calibration": SAMPLES, "test": SAMPLES}
        assert row.figures["layers"] == 2


def test_layers_have_their_kinds(found: list[Row]) -> None:
    assert found[0].details["kinds"] == {"first": "first", "second": "dense"}
    every = layers_of(fm.residual_net())
    kinds = [layers.kind_of(la, first=n == 0) for n, la in enumerate(every)]
    assert kinds[:2] == ["first", "k x k"]
    assert set(kinds) <= {"first", "k x k", "1 x 1", "dense"}


def test_errors_are_those_of_the_curves(found: list[Row], tiny: Path) -> None:
    with np.load(tiny / "data.npz") as archive:
        order = np.random.default_rng(0).permutation(len(archive["x"]))
        drawn = archive["x"][order[:SAMPLES]]
    drawn_curves = curves(tiny / "tiny.onnx", calib=drawn, passes="svd", threads=1)
    cases = cases_of(found[1])
    assert {c.layer for c in cases} == {"first", "second"}
    for case in cases:
        (curve,) = drawn_curves.of(case.layer)
        error = curve.error_at(case.ratio)
        assert error is not None
        assert abs(case.error - error) < 1e-9
        assert case.macs <= case.ratio


def test_what_is_fitted_to_responses_is_better_on_them(found: list[Row]) -> None:
    pairs = 0
    for weights, responses in (found[:2], found[2:]):
        by_key = {(c.layer, c.ratio): c for c in cases_of(weights)}
        for case in cases_of(responses):
            assert case.error <= by_key[case.layer, case.ratio].error * (1 + 1e-9)
            assert case.held_out < 1
            assert case.held_out != case.error
            pairs += 1
    assert pairs > len(RATIOS)


def test_every_layer_has_one_winner_at_each_ratio(found: list[Row]) -> None:
    text = layers.tables(found)
    assert text.index("tiny, first, 1 layers") < text.index("tiny, dense, 1 layers")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    assert {line[0] for line in lines} == {"`svd`", "`tensor_train`"}
    won = sum(int(count) for line in lines for count in line[5].split(" / "))
    assert won == len({(c.layer, c.ratio) for row in found for c in cases_of(row)})


def test_table() -> None:
    case = Case("a", 0.5, 0.4, 0.4, "", 0.04, 0.05)
    kinds = {"a": "first", "b": "first", "c": "dense"}

    def row(method: str, metric: str, seconds: float, *cases: Case) -> Row:
        made: Any = [asdict(c) for c in cases]
        cell = Cell("layers", "net", {"method": method, "metric": metric, "samples": 10})
        return cell.measured({}, {"seconds": seconds}, kinds=kinds, cases=made)

    rows = [
        row("m", "identity", 1.2, replace(case, error=0.2)),
        row("m", "covariance", 3.4, case, replace(case, layer="b", error=0.01, held_out=0.0125)),
        row("n", "covariance", 3.0, replace(case, error=0.02, held_out=0.06)),
    ]
    lines = layers.tables(rows).strip().splitlines()
    assert lines[0] == "net, first, 2 layers"
    # of 0.04 and 0.01 the geometric mean is 0.02; n wins nothing, being worse on other samples
    assert lines[4] == "| `m` | - | 0.2 / 0.02 / 0.025 | - | - | 0 / 2 / 0 / 0 | 1 / 3 |"
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
