from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.model import load
from onnx_lowrank.runtime import runtime
from onnx_lowrank.runtime.runtime import Feed, Runtime
from tests import fixtures_models as fm
from tests.scripted_timer import ScriptedSession

X, _ = fm.classified(5)


def test_run_gives_outputs_by_name() -> None:
    session = fm.ONE_THREAD.session(load(fm.classifier()))
    assert session.outputs == ["y"]
    values = session.run({"x": X, "not an input": X})
    assert values.keys() == {"y"}
    np.testing.assert_allclose(
        values["y"], fm.run(fm.classifier(), {"x": X})["y"], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("options", [{"optimise": False}, {"lean": True}])
def test_sessions_of_all_kinds_agree(options: dict[str, bool]) -> None:
    model = load(fm.classifier())
    plain = fm.ONE_THREAD.session(model).run({"x": X})["y"]
    other = fm.ONE_THREAD.session(model, **options).run({"x": X})["y"]
    np.testing.assert_allclose(other, plain, rtol=1e-4, atol=1e-4)


def test_only_the_outputs_that_are_asked_for_in_their_order() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["a"])]
    proto = fm.build(nodes, {"x": ["N", 64]}, {"n": ["N", 64], "a": ["N", 64]}, {})
    session = fm.ONE_THREAD.session(load(proto))
    assert list(session.run({"x": X}, ["a"])) == ["a"]
    values = session.run({"x": X}, ["a", "n"])
    np.testing.assert_array_equal(values["a"], np.abs(X))
    np.testing.assert_array_equal(values["n"], -X)


def test_external_data_is_found_beside_the_file(tmp_path: Path) -> None:
    model = load(fm.external(tmp_path, fm.classifier()))
    np.testing.assert_array_equal(
        fm.ONE_THREAD.session(model, optimise=False).run({"x": X})["y"],
        fm.run(fm.classifier(), {"x": X})["y"],
    )


# refusals


def test_options_that_make_no_sense() -> None:
    with pytest.raises(OptionError, match=r"'TeaExecutionProvider'.*choose from .*CPUExecution"):
        Runtime("TeaExecutionProvider")
    with pytest.raises(OptionError, match="threads must be 0 or more, not -1"):
        Runtime(threads=-1)


def test_what_onnx_runtime_refuses_is_a_model_error_of_one_line() -> None:
    proto = fm.classifier()
    proto.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=r"Runtime cannot load the model: .*NoSuchOp") as load_:
        fm.ONE_THREAD.session(load(proto))
    session = fm.ONE_THREAD.session(load(fm.classifier()))
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: ") as run_:
        session.run({"x": X[:, :5]})
    for caught in (load_, run_):
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("feed", [{}, {"x": X.astype(np.float64)}], ids=["missing", "double"])
def test_a_feed_that_does_not_fit_is_a_model_error(feed: Feed) -> None:
    session = fm.ONE_THREAD.session(load(fm.classifier()))
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: "):
        session.run(feed)


# latency


def test_the_first_half_of_a_turn_is_not_counted() -> None:
    log: list[str] = []
    times = ScriptedSession("a", 0.001, log).turn({}, seconds=0.0, least=4)
    assert len(log) == 8
    assert len(times) == 4


def test_a_long_run_is_counted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_LONG", 0.002)
    log: list[str] = []
    (time,) = ScriptedSession("a", 0.005, log).turn({}, seconds=1.0, least=4)
    assert len(log) == 1
    assert time >= 0.005
