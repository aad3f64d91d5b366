from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.judge.checks import Accuracy, OutputCheck, Validation
from onnx_lowrank.judge.verdict import Estimate
from onnx_lowrank.latency.pairs import LatencyPair
from onnx_lowrank.planning.notes import Remark, TimeBesideProducts
from onnx_lowrank.planning.plan import Decision, GroupDecision
from onnx_lowrank.refit.behind_relu import Behind
from onnx_lowrank.refit.refit import Refit
from onnx_lowrank.report.check import Basis
from onnx_lowrank.report.report import Report
from onnx_lowrank.report.stages import Stage
from onnx_lowrank.report.wording import worded
from tests.scripted_timer import pair

DECISIONS = (
    Decision("a", "Conv", "factorize", "svd", "", 8, 0.01, 1000, 400, 100, 40, "0.40 of its MACs"),
    Decision("b [x]", "Gemm", "keep", "", "", 0, 0.0, 500, 500, 50, 50, "no rank saves anything"),
    Decision("c", "LSTM", "skip", "", "", 0, 0.0, 0, 0, 0, 0, "LSTM is not factorized"),
)
CHECK = OutputCheck("y", 0.01, 40.0, 0.999, 0.5, 0.98, 1.0)
REPORT = Report(
    before=Cost(1500, 150, 6000),
    after=Cost(900, 90, 3600),
    target="macs=0.6",
    decisions=DECISIONS,
    groups=(GroupDecision("g", "cut", 8, (1, 3), 0.01, "2 of 8 channels are left"),),
    refits=(Refit("a", math.inf, 0.02, 0.02),),
    validation=Validation(100, (CHECK,), Accuracy("y", 100, 0.95, 0.94)),
    latency=(pair(),),
    notes=(Remark("a note"),),
    seconds={"calibrate": 0.1, "plan": 0.2, "rewrite": 0.3, "refit": 0.4, "validate": 0.5},
    version="0.1",
    plan="abc",
    seed=3,
    basis=Basis("1a", "2b", "3c", {"processor": "a <CPU>"}),
)
EMPTY = replace(
    REPORT,
    decisions=(),
    groups=(),
    refits=(),
    validation=Validation(0, (), None),
    latency=(),
    notes=(),
)


def parsed(report: Report) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    data: dict[str, Any] = json.loads(report.to_json(), parse_constant=refuse)
    return data


def test_json_has_the_agreed_keys() -> None:
    data = parsed(REPORT)
    assert data.keys() == {
        "schema", "version", "target", "seed", "plan", "model", "layers", "groups", "refit",
        "validation", "accuracy", "latency", "notes", "seconds", "costliest", "stages",
        "simplified", "kind", "gate", "basis",
    }  # fmt: skip
    assert data["schema"] == 2
    assert data["model"] == {
        "before": {"macs": 1500, "params": 150, "bytes": 6000, "uncounted": [], "latency_ms": 1.0},
        "after": {"macs": 900, "params": 90, "bytes": 3600, "uncounted": [], "latency_ms": 0.5},
    }
    assert [la["name"] for la in data["layers"]] == ["a", "b [x]", "c"]
    first = data["layers"][0]
    assert {k: first[k] for k in ("op", "decision", "method", "rank", "error")} == {
        "op": "Conv", "decision": "factorize", "method": "svd", "rank": 8, "error": 0.01,
    }  # fmt: skip
    assert (first["macs_before"], first["macs_after"]) == (1000, 400)
    assert first["reason"] == "0.40 of its MACs"
    assert data["validation"]["samples"] == 100
    assert data["validation"]["outputs"][0]["top1_agreement"] == 0.98
    assert data["accuracy"] == {
        "output": "y", "samples": 100, "reference": 0.95, "new": 0.94,
        "drop": pytest.approx(0.01, rel=1e-9),
    }  # fmt: skip
    assert list(data["seconds"]) == ["calibrate", "plan", "rewrite", "refit", "validate"]
    assert data["latency"][0]["speedup"] == 2.0


def test_json_has_no_nan_and_no_infinity() -> None:
    exact = replace(CHECK, relative_error=0.0, snr_db=math.inf)
    data = parsed(replace(REPORT, validation=Validation(1, (exact,), None)))
    assert data["refit"][0]["ridge"] is None
    assert data["validation"]["outputs"][0]["snr_db"] is None
    assert data["accuracy"] is None


def test_an_empty_report_is_one_too() -> None:
    data = parsed(EMPTY)
    assert data["layers"] == []
    assert data["model"]["before"]["latency_ms"] is None


def test_ratio() -> None:
    assert REPORT.macs_ratio == 0.6
    assert replace(REPORT, before=Cost(0, 0, 10), after=Cost(0, 0, 10)).macs_ratio == 1.0


def printed(report: Report, width: int = 160) -> str:
    console = Console(width=width, record=True, quiet=False, file=None, force_terminal=False)
    with console.capture() as capture:
        report.print(console)
    return capture.get()


def test_tables_say_what_was_done_and_why() -> None:
    text = printed(REPORT)
    parts = ("a note", "LSTM is not factorized", "no rank saves anything", "40.0 dB", "95.00%",
             "94.00%", "-1.00 points", "2.00x", "0.600", "1.5 k", "b [x]")  # fmt: skip
    for part in parts:
        assert part in text, part
    assert "ReLU" not in text


def test_what_was_gained_behind_a_relu() -> None:
    found = (Behind(0.5, 0.45), Behind(0.25, 0.25), Behind(0.0, 0.0))
    refits = [replace(REPORT.refits[0], behind_relu=b) for b in found]
    report = replace(REPORT, refits=(*REPORT.refits, *refits))
    assert "1 of 3 layers gained, 3.3% less error there on held-out batches" in printed(report)
    assert parsed(report)["refit"][0]["behind_relu"] is None
    assert parsed(report)["refit"][1]["behind_relu"] == {"linear": 0.5, "error": 0.45}


def test_tables_of_an_empty_report() -> None:
    text = printed(EMPTY)
    assert "layers" in text
    assert "nan" not in text.lower()


def test_infinite_ratios_are_words() -> None:
    exact = replace(CHECK, relative_error=0.0, snr_db=math.inf, top1_agreement=None)
    text = printed(replace(REPORT, validation=Validation(1, (exact,), None)))
    assert "exact" in text
    assert "inf" not in text


@pytest.mark.full
@pytest.mark.parametrize("net", ["mlp"])
def test_a_real_report_counts_its_layers(net: str, compressed: Callable[..., Any]) -> None:
    report = compressed(net).report
    data = parsed(report)
    assert len(data["layers"]) == 3
    saved = sum(la["macs_before"] - la["macs_after"] for la in data["layers"])
    assert data["model"]["before"]["macs"] - data["model"]["after"]["macs"] == saved
    assert all(la["reason"] for la in data["layers"])
    assert all(value >= 0 for value in data["seconds"].values())


def test_groups_kept_by_hand_show_no_loss() -> None:
    # a plan edited to keep a group still holds what was to be cut
    kept = GroupDecision("by hand", "keep", 8, (1, 3), 0.0123, "set by hand")
    text = printed(replace(REPORT, groups=(*REPORT.groups, kept)))
    rows = [line.split() for line in text.splitlines()]
    assert ["g", "cut", "8", "2", "0.0100"] in [r[:5] for r in rows]
    assert ["by", "hand", "keep", "8", "set", "by", "hand"] in rows


def test_what_takes_time_beside_products_is_worded() -> None:
    before = {"Softmax": 0.05, "Transpose": 0.25, "Add": 0.1, "Mul": 0.1}
    note = TimeBesideProducts(1, 1.2, 1.43, before, {"Transpose": 0.6})
    assert worded(note) == (
        "time at batch 1: 1.20x for 1.43x fewer MACs; operators that are no convolutions or "
        "products of matrices take 50% of the original's time (Transpose 25%, Add 10%, Mul 10%), "
        "so that no plan is faster than 2.0x, and 60% of what is left"
    )
    nothing = worded(TimeBesideProducts(1, 1.2, 1.43, {}, {}))
    assert "take 0% of the original's time, and 0% of what is left" in nothing


def test_stages_are_columns() -> None:
    def stage(name: str, size: int, *pairs: LatencyPair) -> Stage:
        return Stage(name, size, pairs, Estimate(0.01, 0.0, 0.02), Estimate(0.98, 0.9, 1.01))

    # the original is told once, however slow the machine was beside the others
    slow = replace(pair(0.25), reference_ms=10.0, new_ms=2.5)
    report = replace(REPORT, stages=(stage("original", 6000), stage("int8", 1500, pair(0.5)),
                                     stage("both", 600, slow)))  # fmt: skip
    lines = [" ".join(line.split()) for line in printed(report).splitlines()]
    assert "bytes 6,000 (1.000) 1,500 (0.250) 600 (0.100)" in lines
    assert "time, batch 1 1 ms 0.5 ms (2.00x) 0.25 ms (4.00x)" in lines
    assert "loss 1.00% 1.00% 1.00%" in lines
    assert "stays, 95 % interval" + 3 * " 98.0% [90.0%, 100.0%]" in lines
    data = parsed(report)["stages"]
    assert [s["name"] for s in data] == ["original", "int8", "both"]
    assert data[2]["latency"][0]["speedup"] == 4
