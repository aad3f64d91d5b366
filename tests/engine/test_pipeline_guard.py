from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.engine.api import Result, compress
from onnx_lowrank.engine.effort import NORMAL, QUICK, THOROUGH, Effort
from onnx_lowrank.engine.guard import check_result
from onnx_lowrank.errors import GuardError, OptionError
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.verdict import Estimate, ReadingVerdict, Verdict
from onnx_lowrank.latency.probe import Place
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.report.report import LayerLoss
from tests import fixtures_channels as fc
from tests import fixtures_models as fm
from tests.scripted_timer import ScriptedTimer, taking

X, _ = fm.classified(300)


def small(timer: ScriptedTimer, **options: Any) -> Result:
    return fm.quick_compress(
        fm.classifier(), calib={"x": X}, target="macs=0.6", timer=timer, **options
    )


def test_the_guard_refuses_what_is_slower() -> None:
    with pytest.raises(GuardError, match=r"takes 1\.2 ms, the original 1 ms \(batch 1\)"):
        small(taking(1.2))
    assert small(taking(1.2), force=True).report.latency[0].new_ms == 1.2
    assert small(taking(1.01)).report.latency[0].new_ms == 1.01


def test_the_guard_refuses_nothing_by_chance() -> None:
    unsure = ScriptedTimer(models=lambda _: 1.2, noise=1.3)
    assert small(unsure).report.latency[0].new_ms == 1.2


def slow_chains(inputs: int, without: tuple[str, float] = ("", 1.2)) -> ScriptedTimer:
    """Finds the model slow, and of its layers only those of so many inputs to lose by a chain.

    Args:
        inputs: of the layers that lose.
        without: name of a layer, and part of the original's time that a model takes where it stays.
    """

    def seconds(place: Place, chain: Chain) -> float:
        loses = chain.nodes > 1 and place.shape[1] == inputs
        return 1e-9 * chain.macs(place.shape) * (100 if loses else 1)

    def whole(model: Model) -> float:
        return without[1] if without[0] in {node.name for node in model.proto.graph.node} else 1.2

    return ScriptedTimer(seconds, whole)


def test_what_does_not_pay_is_taken_back() -> None:
    """The layer stays, and another saves what is asked for."""
    net = fc.Net(0)
    x, inputs = "x", 3
    for width in (16, 24, 20):
        x, inputs = net.relu(net.conv(x, inputs, width)), width
    net.head(x, inputs)
    data = fm.float32(np.random.default_rng(0).standard_normal((60, 3, 8, 8)))
    options: dict[str, Any] = {"calib": {"x": data}, "target": "macs=0.8"}
    options |= {"passes": "spatial_svd", "force": True}

    def made(timer: ScriptedTimer) -> tuple[set[str], Result]:
        result = fm.quick_compress(net.model(), timer=timer, **options)
        assert result.report.macs_ratio <= 0.8
        return {d.layer for d in result.plan.decisions if d.method}, result

    first, plain = made(slow_chains(0))
    assert "conv3" in first
    assert not [n for n in plain.report.said if "taken back" in n]
    second, result = made(slow_chains(24, without=("conv3", 1.1)))
    assert second == {"conv2"}
    assert "taken back, slower than the layers: conv3" in result.report.said


def test_what_does_not_pay_is_named() -> None:
    with pytest.raises(GuardError, match=r"slower than the layers that they replace: first"):
        small(slow_chains(64))
    with pytest.raises(GuardError, match=r"\(batch 1\); nothing"):
        small(slow_chains(0))


def test_the_guard_refuses_what_is_bigger() -> None:
    """Names of nodes and tensors take more room than so few weights."""
    options: dict[str, Any] = {"calib": {"x": fm.classified(300, 12)[0]}, "target": "macs=0.75"}
    options |= {"passes": "svd", "min_kept": 0.5}
    with pytest.raises(GuardError, match=r"bytes, the original .*--force writes it all the same"):
        fm.quick_compress(fm.classifier(12), **options)
    forced = fm.quick_compress(fm.classifier(12), **options, force=True).report
    assert forced.after.bytes > forced.before.bytes


@pytest.mark.full
def test_the_clock_itself() -> None:
    result = compress(fm.classifier(), calib={"x": X}, target="macs=0.6", threads=1, force=True)
    assert [p.batch for p in result.report.latency] == [1, 16]
    assert all(p.speedup > 0 for p in result.report.latency)
    assert {"calibrate", "plan", "rewrite", "refit", "validate"} <= set(result.report.seconds)
    options = ort.SessionOptions()
    assert ort.InferenceSession(result.model.SerializeToString(), options).get_inputs()


def test_nothing_is_written_over_the_input(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(fm.classifier(), path)
    result = fm.quick_compress(path, calib={"x": X}, target="macs=0.6")
    with pytest.raises(OptionError, match="is the input itself"):
        result.save(path)
    assert isinstance(onnx.load(path), ModelProto)


def guarded(
    *kept: Estimate,
    least: float | None = 0.9,
    blame: bool = False,
    effort: Effort | None = None,
) -> None:
    """Guard a result of whose outputs these parts are kept."""
    result = fm.quick_compress(fm.classifier(), calib={"x": X}, target="macs=0.6", force=True)
    readings = tuple(
        ReadingVerdict(Reading(f"y{i}", "kl", -1), Estimate(0.1, 0.1, 0.1), part, {}, "samples")
        for i, part in enumerate(kept)
    )
    validation = replace(
        result.report.validation, samples=200, verdict=Verdict(200, Estimate(0, 0, 0), readings)
    )
    worst = (LayerLoss("head", 0.3, 0.4, 50), LayerLoss("conv", 0.05, 0.4, 50)) if blame else ()
    report = replace(result.report, validation=validation, costliest=worst)
    check_result(report, least, effort)


def test_the_guard_refuses_what_gives_other_answers() -> None:
    bad, fair, good = (Estimate(v, v - 0.05, v + 0.05) for v in (0.4, 0.88, 0.95))
    said = r"'y1' keeps the first class of 40\.0% \[35\.0%, 45\.0%\] of 200 samples, and 90% must"
    with pytest.raises(GuardError, match=rf"{said} stay \(--min-kept\); .*--force writes it"):
        guarded(good, bad)
    guarded(good, good)
    guarded(fair)  # chance may have done it
    guarded(bad, least=0.4)
    guarded(bad, least=None)  # random inputs prove nothing


@pytest.mark.parametrize(
    ("effort", "more"),
    [
        (QUICK, r"have plans built and judged \(--effort normal\), leave more than"),
        (NORMAL, r"have more plans built and judged \(--effort thorough\), leave more than"),
        (THOROUGH, r"min-kept\); leave more than"),
        (None, r"min-kept\); leave more than"),
    ],
)
def test_the_guard_names_the_effort_that_does_more(effort: Effort | None, more: str) -> None:
    with pytest.raises(GuardError, match=more):
        guarded(Estimate(0.4, 0.35, 0.45), effort=effort)


def test_the_guard_names_the_layer_to_blame_and_what_would_help() -> None:
    bad = Estimate(0.4, 0.35, 0.45)
    with pytest.raises(
        GuardError, match=r"layer 'head' costs most, 30 points of a loss of 40 % on 50 samples"
    ):
        guarded(bad, blame=True)
    with pytest.raises(GuardError, match=r"--exclude 'head'.* leave more than macs=0\.6"):
        guarded(bad, blame=True)


def test_numbers_that_become_nan_are_no_answers() -> None:
    lost = Estimate(-math.inf, -math.inf, -math.inf)
    with pytest.raises(GuardError, match="keeps nothing"):
        guarded(lost)


def test_a_collapse_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """White inputs and weights: nothing of them is redundant, and a tenth tells little."""
    random = np.random.default_rng(0)
    x, w = (fm.float32(random.standard_normal(s)) for s in ((400, 64), (64, 64)))
    np.savez(tmp_path / "data.npz", x=x)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["u"]),
        helper.make_node("Softmax", ["u"], ["y"]),
    ]
    net = fm.build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, {"w": w})
    onnx.save(net, tmp_path / "in.onnx")
    command = ["compress", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--calib",
               str(tmp_path / "data.npz"), "--target", "params=0.15", "--threads", "1"]  # fmt: skip
    fm.refused(command, capsys, GuardError.exit_code, "keeps the first class of", "--min-kept")
    assert not (tmp_path / "out.onnx").exists()
    assert fm.command([*command, "--force", "--quiet"]) == 0
