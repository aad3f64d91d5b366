from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.engine import int8
from onnx_lowrank.engine.api import Result, apply
from onnx_lowrank.engine.int8 import within
from onnx_lowrank.errors import DataError, GuardError, OptionError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.planning.notes import InInt8
from onnx_lowrank.runtime.quantizable import MODES, Mode, made_ready
from onnx_lowrank.runtime.quantizer import quantized
from tests import fixtures_models as fm
from tests.scripted_timer import taking

X, LABELS = fm.classified(300)
#: the last input of this net is a thousand times larger than the others, and little is read of it
LOUD = fm.float32(X * np.where(np.arange(64) == 63, 3000.0, 1.0))


def small(mode: Mode, **options: Any) -> Result:
    given = {"calib": {"x": X}, "target": "macs=0.6", "quantize": mode, **options}
    return fm.quick_compress(fm.classifier(), **given)


def loud(layers: int = 2) -> ModelProto:
    """A net whose first layer cannot be borne in int8: one range has to hold all its inputs."""
    rng = np.random.default_rng(5)
    weights, nodes = {}, []
    for i in range(layers):
        weights[f"w{i}"] = fm.float32(rng.standard_normal((64, 64)) / 8)
        names = ["x" if i == 0 else f"r{i - 1}", f"w{i}"]
        nodes.append(helper.make_node("MatMul", names, [f"h{i}"], name=f"layer{i}"))
        nodes.append(helper.make_node("Tanh", [f"h{i}"], [f"r{i}"], name=f"tanh{i}"))
    weights["w0"][63] /= 3000
    nodes[-1].output[0] = "y"
    return fm.build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, weights)


def said(result: Result) -> InInt8:
    (note,) = [n for n in result.report.notes if isinstance(n, InInt8)]
    return note


@pytest.mark.parametrize("mode", MODES)
def test_four_columns(mode: Mode, tmp_path: Path) -> None:
    result = small(mode)
    stages = result.report.stages
    assert [s.name for s in stages] == [
        "original", f"int8 ({mode})", "compressed", f"compressed, int8 ({mode})",
    ]  # fmt: skip
    original, alone, ours, both = stages
    assert both.bytes == result.save(tmp_path / "out.onnx") == result.report.after.bytes
    assert both.bytes < min(alone.bytes, ours.bytes) < original.bytes
    assert (original.loss.value, original.kept.value, original.latency) == (0, 1, ())
    assert result.report.validation.verdict is not None
    assert both.loss == result.report.validation.verdict.loss
    # the plan is that of the model before int8, which reckons with it
    plain = fm.quick_compress(fm.classifier(), calib={"x": X}, target="macs=0.6", for_int8=mode)
    assert plain.plan == result.plan
    assert ours.bytes == plain.report.after.bytes
    assert ours.loss == plain.report.validation.verdict.loss  # type: ignore[union-attr]
    onnx.checker.check_model(result.model, full_check=True)
    assert {p.key for p in result.model.metadata_props} >= {"onnx_lowrank.plan"}
    assert said(result).left == ()
    data = result.report.to_dict()["stages"]
    assert [s["bytes"] for s in data] == [s.bytes for s in stages]


@pytest.mark.full
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bytes_again_and_from_the_plan(mode: Mode) -> None:
    first, second = small(mode), small(mode)
    assert first.model == second.model
    applied = apply(
        fm.classifier(), first.plan, calib={"x": X}, threads=1, cache="", timer=taking(0.5),
        quantize=mode,
    )  # fmt: skip
    assert applied.model == first.model


def test_a_layer_that_cannot_be_borne_stays_as_it_is() -> None:
    proto = loud()
    options: dict[str, Any] = {"calib": {"x": LOUD}, "passes": "svd", "force": True}
    result = fm.quick_compress(proto, **options, quantize="dynamic", target="macs=1")
    note = said(result)
    assert note.left == ("layer0",)
    assert note.layers == 1
    assert result.report.stages[3].kept.value >= 0.95
    everything = quantized(made_ready(load(proto), "dynamic"))
    judge = Judge(load(proto), fm.dataset(proto, {"x": LOUD}), fm.ONE_THREAD, 64)
    assert judge.compare(everything).kept.value < 0.8
    assert "1 that cost too much stay in floating point: layer0" in result.report.said[-1]


def test_as_few_as_will_do_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all sets of layers that could be left."""
    proto = loud(4)
    judge = Judge(load(proto), fm.dataset(proto, {"x": LOUD}), fm.ONE_THREAD, 64)
    ready = made_ready(load(proto), "dynamic")
    found = within(ready, load(proto), judge, 0.95)
    assert found.left

    def keeps(left: tuple[str, ...], narrow: bool) -> float:
        made = quantized(ready, leaving=left, narrow=narrow)
        return judge.compare(made).kept.value

    fewer = [s for k in range(len(found.left)) for s in combinations(ready.layers, k)]
    assert all(keeps(s, n) < 0.95 for s in fewer for n in (False, True))
    assert keeps(found.left, found.narrow) >= 0.95
    # in groups of two, the one with the first layer
    monkeypatch.setattr(int8, "GROUPS", 2)
    coarse = within(ready, load(proto), judge, 0.95)
    assert coarse.left == ("layer0", "layer1")
    assert coarse.runs <= 2 + 2 + 1


def test_where_no_layer_can_be_borne_none_is_in_int8() -> None:
    proto = loud(1)
    judge = Judge(load(proto), fm.dataset(proto, {"x": LOUD}), fm.ONE_THREAD, 64)
    ready = made_ready(load(proto), "dynamic")
    found = within(ready, load(proto), judge, 0.99)
    assert found.model.proto == proto
    assert found.left == ready.layers == ("layer0",)
    result = fm.quick_compress(
        proto, calib={"x": LOUD}, passes="svd", target="macs=1", quantize="dynamic", force=True
    )
    assert "no layer can be borne in int8, so none is" in result.report.said[-1]


def test_a_model_that_keeps_little_must_keep_nearly_all_of_that() -> None:
    proto, worse = fm.classifier(), fm.classifier()
    noise = np.random.default_rng(0).standard_normal((64, 64))
    tensor = next(t for t in worse.graph.initializer if t.name == "w1")
    values = onnx.numpy_helper.to_array(tensor) + fm.float32(0.15 * noise)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, "w1"))
    judge = Judge(load(proto), fm.dataset(proto, {"x": X}), fm.ONE_THREAD, 64)
    has = judge.compare(load(worse)).kept.value
    assert has < 0.9
    found = within(made_ready(load(worse), "dynamic"), load(worse), judge, 0.95)
    assert found.left == ()
    assert judge.compare(found.model).kept.value >= 0.95 * has


def test_the_guard_judges_the_whole() -> None:
    slow = taking(1.2)
    with pytest.raises(GuardError, match=r"takes 1\.2 ms, the original 1 ms"):
        small("dynamic", timer=slow)
    assert small("dynamic", timer=slow, force=True).report.latency[0].new_ms == 1.2


def test_what_static_needs() -> None:
    with pytest.raises(DataError, match=r"--quantize static finds .* give --calib"):
        fm.quick_compress(fm.classifier(), target="macs=0.6", quantize="static", force=True)
    made = fm.quick_compress(fm.classifier(), target="macs=0.6", quantize="dynamic", force=True)
    assert said(made).layers


@pytest.mark.full
def test_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OptionError, match="quantize is 'int4'; write dynamic or static"):
        fm.quick_compress(fm.classifier(), quantize="int4")
    onnx.save(fm.residual_net(), tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=fm.pictures(60))
    argv = ["compress", str(tmp_path / "net.onnx"), str(tmp_path / "out.onnx")]
    argv += ["--calib", str(tmp_path / "x.npz"), "--target", "macs=0.6", "--threads", "1"]
    argv += ["--cache", "", "--effort", "quick", "--quantize", "dynamic"]
    fm.refused(argv, capsys, 2, "--quantize dynamic: the model has none of MatMul")
    assert not (tmp_path / "out.onnx").exists()
    assert fm.command([*argv[:-1], "static", "--force"]) == 0
    out = capsys.readouterr().out
    assert "int8 and low rank" in out
    assert "compressed, int8 (static)" in out
