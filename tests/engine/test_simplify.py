"""A simplified copy of the model: taken where it is the same and simpler, left where it is not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.engine.api import Result, apply, compress, plan
from onnx_lowrank.errors import OptionError, PlanError
from tests import fixtures_models as fm
from tests.scripted_timer import taking

OPTIONS: dict[str, Any] = {
    "target": "macs=0.6", "passes": "svd", "effort": "quick", "threads": 1, "force": True,
    "timer": taking(0.5),
}  # fmt: skip
DATA = {"x": fm.classified(60)[0]}


def roundabout() -> ModelProto:
    """The classifier with nodes that a simplifier takes away, and a frame that it must keep."""
    proto = fm.classifier()
    first = proto.graph.node[0]
    ahead = [
        helper.make_node("Identity", ["x"], ["x1"]),
        helper.make_node("Identity", ["x1"], ["x2"]),
    ]
    first.input[0] = "x2"
    nodes = [*ahead, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.producer_name = "tests"
    proto.metadata_props.add(key="names", value="a,b")
    onnx.checker.check_model(proto, full_check=True)
    return proto


def without_identities(proto: ModelProto, **_: Any) -> ModelProto:
    """A simplifier that does one thing, and forgets the frame."""
    made = ModelProto()
    made.CopyFrom(proto)
    names: dict[str, str] = {}
    kept = []
    for node in made.graph.node:
        node.input[:] = [names.get(i, i) for i in node.input]
        if node.op_type == "Identity":
            names[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    del made.graph.node[:]
    made.graph.node.extend(kept)
    made.ir_version = 10
    made.ClearField("metadata_props")
    made.producer_name = "simplifier"
    return made


@pytest.fixture
def simplifier(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Puts a function in the place of onnxslim's."""

    def put(slim: Callable[..., Any]) -> None:
        module = ModuleType("onnxslim")
        module.slim = slim  # type: ignore[attr-defined]
        module.__version__ = "0"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxslim", module)

    return put


def test_a_simpler_copy_is_taken_and_told_apart(simplifier: Any) -> None:
    simplifier(without_identities)
    result = compress(roundabout(), calib=DATA, simplify=True, **OPTIONS)
    found = result.report.simplified
    assert found is not None
    assert found.nodes == (5, 3)
    assert found.after.bytes < found.before.bytes
    assert result.report.before.bytes == found.after.bytes
    assert [p.speedup for p in found.latency] == [2.0]
    assert "5 -> 3 nodes" in result.report.said[0]
    assert {n.op_type for n in result.model.graph.node} == {"Gemm", "Relu"}
    schema = Path(sys.modules["onnx_lowrank.report.report"].__file__ or "").parent
    jsonschema.validate(
        result.report.to_dict(),
        json.loads((schema / "report.schema.json").read_text(encoding="utf-8")),
    )


def test_the_frame_stays(simplifier: Any) -> None:
    simplifier(without_identities)
    given = roundabout()
    before = given.SerializeToString(deterministic=True)
    made = compress(given, calib=DATA, simplify=True, **OPTIONS).model
    assert given.SerializeToString(deterministic=True) == before
    assert made.ir_version == given.ir_version
    assert list(made.opset_import) == list(given.opset_import)
    assert list(made.graph.input) == list(given.graph.input)
    assert list(made.graph.output) == list(given.graph.output)
    assert made.producer_name == "tests"
    assert {p.key for p in made.metadata_props} > {"names"}


def _wrong(proto: ModelProto, **_: Any) -> ModelProto:
    made = without_identities(proto)
    for tensor in made.graph.initializer:
        if tensor.name == "b2":
            values = numpy_helper.to_array(tensor) + np.float32(1)
            tensor.CopyFrom(numpy_helper.from_array(values, "b2"))
    return made


def _newer(proto: ModelProto, **_: Any) -> ModelProto:
    made = without_identities(proto)
    made.opset_import[0].version += 1
    return made


def _broken(_: ModelProto, **__: Any) -> ModelProto:
    raise KeyError("a node")


def _invalid(proto: ModelProto, **_: Any) -> ModelProto:
    made = without_identities(proto)
    made.graph.node[0].input[0] = "nowhere"
    return made


@pytest.mark.parametrize(
    ("slim", "reason"),
    [
        (_wrong, "its output 'y' is another on sample 0"),
        (_newer, "it changed the operator sets"),
        (_broken, "it failed"),
        (_invalid, "ONNX Runtime cannot load the model"),
        (lambda proto, **_: proto, "it has no fewer nodes"),
        (lambda proto, **_: None, "it returned no model"),
    ],
)
def test_what_is_not_the_same_is_not_taken(
    simplifier: Any, slim: Callable[..., Any], reason: str
) -> None:
    simplifier(slim)
    plain = compress(roundabout(), calib=DATA, **OPTIONS)
    result = compress(roundabout(), calib=DATA, simplify=True, **OPTIONS)
    assert result.report.simplified is None
    assert result.report.said[0].startswith("onnxslim 0 was tried before anything else")
    assert reason in result.report.said[0]
    tried_twice = reason != "it has no fewer nodes"
    assert ("without inference of shapes" in result.report.said[0]) is tried_twice
    assert _bytes(result) == _bytes(plain)


def test_shapes_are_not_inferred_where_that_changes_the_outputs(simplifier: Any) -> None:
    def slim(proto: ModelProto, no_shape_infer: bool = False) -> ModelProto:
        return without_identities(proto) if no_shape_infer else _wrong(proto)

    simplifier(slim)
    result = compress(roundabout(), calib=DATA, simplify=True, **OPTIONS)
    found = result.report.simplified
    assert found is not None
    assert found.by == "onnxslim 0 (without inference of shapes)"
    assert found.nodes == (5, 3)


def _bytes(result: Result) -> bytes:
    return result.model.SerializeToString(deterministic=True)


def test_a_plan_made_simplified_is_applied_simplified(simplifier: Any) -> None:
    simplifier(without_identities)
    options = {k: v for k, v in OPTIONS.items() if k != "force"}
    made = plan(roundabout(), calib=DATA, simplify=True, **options)
    rest = {"calib": DATA, "threads": 1, "timer": taking(0.5), "force": True}
    again = apply(roundabout(), made, simplify=True, **rest)
    assert _bytes(again) == _bytes(compress(roundabout(), calib=DATA, simplify=True, **OPTIONS))
    with pytest.raises(PlanError, match="another model"):
        apply(roundabout(), made, **rest)


def test_without_onnxslim_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    with pytest.raises(OptionError, match=r'pip install "onnx-lowrank\[simplify\]"'):
        compress(roundabout(), calib=DATA, simplify=True, **OPTIONS)
    onnx.save(roundabout(), tmp_path / "m.onnx")
    command = ["compress", str(tmp_path / "m.onnx"), str(tmp_path / "out.onnx"), "--simplify"]
    fm.refused(command, capsys, 2, "onnx-lowrank[simplify]")
    assert not (tmp_path / "out.onnx").exists()


def test_onnxslim_itself() -> None:
    pytest.importorskip("onnxslim", reason="the extra simplify is not installed")
    result = compress(roundabout(), calib=DATA, simplify=True, **OPTIONS)
    assert result.report.simplified is not None
    assert result.report.simplified.nodes == (5, 3)
