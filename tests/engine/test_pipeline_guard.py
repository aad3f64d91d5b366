from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.cli import main as cli
from onnx_lowrank.engine.api import Result, compress
from onnx_lowrank.engine.guard import check_result
from onnx_lowrank.errors import GuardError, OptionError
from onnx_lowrank.judge.validation import OutputCheck, Validation
from onnx_lowrank.latency.probe import Place
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


def slow_chains(inputs: int) -> ScriptedTimer:
    """Finds the model slow, and of its layers only those of so many inputs to lose by a chain."""

    def seconds(place: Place, chain: Chain) -> float:
        loses = chain.nodes > 1 and place.shape[1] == inputs
        return 1e-9 * chain.macs(place.shape) * (100 if loses else 1)

    return ScriptedTimer(seconds, lambda _: 1.2)


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
    second, result = made(slow_chains(24))
    assert second == {"conv2"}
    assert "taken back, slower than the layers: conv3" in result.report.said[-1]


def test_what_does_not_pay_is_named() -> None:
    with pytest.raises(GuardError, match=r"slower than the layers that they replace: first"):
        small(slow_chains(64))
    with pytest.raises(GuardError, match=r"\(batch 1\); nothing"):
        small(slow_chains(0))


def test_the_guard_refuses_what_is_bigger() -> None:
    """Names of nodes and tensors take more room than so few weights."""
    options: dict[str, Any] = {"calib": {"x": fm.classified(300, 12)[0]}, "target": "macs=0.75"}
    options["passes"] = "svd"
    with pytest.raises(GuardError, match=r"bytes, the original .*--force writes it all the same"):
        fm.quick_compress(fm.classifier(12), **options)
    forced = fm.quick_compress(fm.classifier(12), **options, force=True).report
    assert forced.after.bytes > forced.before.bytes


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


Outputs = tuple[float | None, float]


def check(*outputs: Outputs, samples: int = 1000, calibrated: bool = True) -> None:
    """Judge outputs of these agreements and SNRs."""
    result = fm.quick_compress(fm.classifier(), calib={"x": X}, target="macs=0.6", force=True)
    checks = tuple(OutputCheck("y", 0.1, snr, 1.0, 0.0, same, same) for same, snr in outputs)
    report = replace(result.report, validation=Validation(samples, checks, None))
    check_result(report, calibrated=calibrated)


def test_the_guard_refuses_what_says_other_things() -> None:
    with pytest.raises(
        GuardError, match=r"class of 40\.0% of 1000 samples, which is less than half; leave"
    ):
        check((0.4, 10.0))
    with pytest.raises(GuardError, match=r"an SNR of -0\.5 dB; .*--force writes it"):
        check((None, -0.5))
    with pytest.raises(GuardError):
        check((0.1, 3.0), (None, -0.5))
    for samples in (10, 100, 1000):
        with pytest.raises(
            GuardError, match=rf"class of 41\.0% of {samples} samples, which is less"
        ):
            check((0.41, 10.0), samples=samples)
    check((0.5, 10.0))
    check((None, 0.5))
    check((0.1, 3.0), (None, 20.0))  # something of it serves
    check((0.1, -3.0), calibrated=False)  # random inputs prove nothing


@pytest.mark.usefixtures("no_clock")
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
    fm.refused(command, capsys, GuardError.exit_code, "keeps of the", "--min-agreement")
    assert not (tmp_path / "out.onnx").exists()
    assert cli.main([*command, "--force", "--quiet"]) == 0
