from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.runtime.session import Feed
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


def test_only_the_outputs_that_are_asked_for_in_their_order() -> None:
    nodes = [helper.make_node("Neg", ["x"], ["n"]), helper.make_node("Abs", ["x"], ["a"])]
    proto = fm.build(nodes, {"x": ["N", 64]}, {"n": ["N", 64], "a": ["N", 64]}, {})
    session = fm.ONE_THREAD.session(load(proto))
    assert list(session.run({"x": X}, ["a"])) == ["a"]
    values = session.run({"x": X}, ["a", "n"])
    np.testing.assert_array_equal(values["a"], np.abs(X))
    np.testing.assert_array_equal(values["n"], -X)


@pytest.mark.parametrize("feed", [{}, {"x": X.astype(np.float64)}], ids=["missing", "double"])
def test_a_feed_that_does_not_fit_is_a_model_error(feed: Feed) -> None:
    session = fm.ONE_THREAD.session(load(fm.classifier()))
    with pytest.raises(ModelError, match="ONNX Runtime cannot run the model: "):
        session.run(feed)


def test_the_first_half_of_a_turn_is_not_counted() -> None:
    log: list[str] = []
    times = ScriptedSession("a", 0.001, log).turn({}, seconds=0.0, least=4)
    assert len(log) == 8
    assert len(times) == 4


def test_a_long_run_is_counted_at_once() -> None:
    log: list[str] = []
    (time,) = ScriptedSession("a", 0.31, log).turn({}, seconds=1.0, least=4)
    assert len(log) == 1
    assert time >= 0.31
