"""The models that the onnx package brings along: inspected, and rewritten at full rank.

Models of one operator often take their weight as an input. It is made a constant here, so that
there is a layer to take apart.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.samples.dataset import input_specs
from onnx_lowrank.samples.made_up import made_up
from tests import fixtures_models as fm
from tests.conftest import Count
from tests.robustness.victims import floats
from tests.support import rewritten_in_turn

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data"
PARTS = ("light", "simple", "pytorch-converted", "pytorch-operator")
FILES = [p for part in PARTS for p in sorted((FOLDER / part).rglob("*.onnx"))]
PASSES: list[Factorization] = parse_list(f"{DEFAULT_PASSES},tucker2")[1]
#: operators of the cases by the onnx package's own generator that are run here; the others have no
#: layers, and are inspected only
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "If", "Loop", "Scan")
#: elements of the largest weights that are made up for the light models, and taken apart
LARGEST_FILLED, LARGEST = 5_000_000, 300_000


class Case(NamedTuple):
    """A model, and what to feed it with where that is known."""

    name: str
    proto: ModelProto
    feed: dict[str, Any] | None


@lru_cache
def node_cases() -> list[Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    cases = []
    for case in found:
        names = [i.name for i in case.model.graph.input]
        feed = dict(zip(names, case.data_sets[0][0], strict=False))
        cases.append(Case(case.name, case.model, feed))
    return cases


def baked(case: Case) -> Case:
    """The case with all floating-point inputs but the first as constants."""
    proto = ModelProto()
    proto.CopyFrom(case.proto)
    feed = dict(case.feed or {})
    for value in list(proto.graph.input)[1:]:
        values = feed.get(value.name)
        if isinstance(values, np.ndarray) and values.dtype.kind == "f":
            proto.graph.initializer.append(numpy_helper.from_array(values, value.name))
            proto.graph.input.remove(value)
            del feed[value.name]
    return Case(f"{case.name} with constants", proto, feed)


def filled(proto: ModelProto) -> ModelProto:
    """A light model with numbers for the weights that it makes by ConstantOfShape."""
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for i, node in enumerate(nodes):
        dims = shapes.get(node.input[0]) if node.op_type == "ConstantOfShape" else None
        if dims is None or dims.ndim != 1 or np.prod(dims) > LARGEST_FILLED:
            proto.graph.node.append(node)
            continue
        values = floats(i, *map(int, dims))
        # keeps responses of one size: variances and scales near 1, weights by the length of a patch
        values = values / np.sqrt(np.prod(dims[1:])) if len(dims) > 1 else 1 + 0.1 * np.abs(values)
        proto.graph.initializer.append(numpy_helper.from_array(fm.float32(values), node.output[0]))
    return proto


def verdict(case: Case) -> str:
    """Rewrite every layer at full rank by each form of each pass that takes it; compare.

    Returns:
        ``passed``, or why there was nothing to compare.
    """
    try:
        source = load(case.proto)
        feed = case.feed or made_up(input_specs(source), {}, 0, 1)[0]
        if not all(isinstance(v, np.ndarray) for v in feed.values()):
            return "skipped: an input is no tensor"
        session = fm.ONE_THREAD.session(source, optimise=False)
        expected = session.run(feed)
    except (ModelError, OptionError) as error:
        return "skipped: " + reason(error)
    if not all(isinstance(v, np.ndarray) for v in expected.values()):
        return "skipped: an output is no tensor"
    turns = 0
    for turns, model in enumerate(rewritten_in_turn(source, PASSES, LARGEST), 1):
        again = fm.ONE_THREAD.session(model, optimise=False).run(feed)
        for name, wanted in expected.items():
            assert again[name].shape == wanted.shape, (case.name, turns, name)
            if wanted.dtype.kind == "f":
                tolerance = 2e-2 if wanted.dtype == np.float16 else 1e-4
                assert fm.relative(again[name], wanted) < tolerance, (case.name, turns, name)
            else:
                np.testing.assert_array_equal(again[name], wanted, err_msg=case.name)
    return "passed" if turns else "skipped: no layer that a pass takes apart"


def reason(error: Exception) -> str:
    text = str(error)
    for sign, short in (
        ("no session can be made", "ONNX Runtime cannot load it"),
        ("ONNX Runtime cannot load", "ONNX Runtime cannot load it"),
        ("ONNX Runtime cannot run", "ONNX Runtime cannot run it"),
        ("only tensors can be fed", "an input is no tensor"),
        ("dynamic axes", "its inputs have no fixed shape"),
    ):
        if sign in text:
            return short
    raise AssertionError(text)


@pytest.mark.full
def test_the_corpus_is_there() -> None:
    assert len(FILES) >= 140
    assert len(node_cases()) >= 1500


@pytest.mark.full
def test_inspect_files(count: Count) -> None:
    for path in FILES:
        found = inspect(path)
        assert found.cost.bytes == path.stat().st_size
        assert all(layer.reason for layer in found.layers), path
        count("onnx corpus, inspect", "passed")


@pytest.mark.full
def test_inspect_node_cases(count: Count) -> None:
    for case in node_cases()[::8]:
        inspect_case(case, count)


@pytest.mark.slow
def test_inspect_the_other_node_cases(count: Count) -> None:
    for number, case in enumerate(node_cases()):
        if number % 8:
            inspect_case(case, count)


def inspect_case(case: Case, count: Count) -> None:
    try:
        found = inspect(case.proto)
    except ModelError as error:
        count("onnx node cases, inspect", f"skipped: {reason(error)}")
        return
    assert all(layer.reason for layer in found.layers), case.name
    count("onnx node cases, inspect", "passed")


@pytest.mark.parametrize("part", PARTS[1:])
def test_full_rank_of_files(part: str, count: Count) -> None:
    for path in (p for p in FILES if p.is_relative_to(FOLDER / part)):
        count(f"onnx {part}, full rank", verdict(file_case(path)))


def file_case(path: Path) -> Case:
    proto = onnx.load(path)
    given = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in given]
    feed: dict[str, Any] = {}
    for i, value in enumerate(inputs):
        file = path.parent / "test_data_set_0" / f"input_{i}.pb"
        if file.is_file() and value.type.HasField("tensor_type"):
            tensor = TensorProto.FromString(file.read_bytes())
            feed[value.name] = numpy_helper.to_array(tensor)
    return Case(path.parent.name, proto, feed if len(feed) == len(inputs) else None)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES[:9], ids=lambda p: p.stem)
def test_full_rank_of_light_models(path: Path, count: Count) -> None:
    count("onnx light, full rank", verdict(Case(path.stem, filled(onnx.load(path)), None)))


@pytest.mark.full
def test_full_rank_of_node_cases(count: Count) -> None:
    """With the weights as inputs nothing can be taken apart; as constants nearly all can."""
    passed = 0
    for case in node_cases():
        if not any(n.op_type in LINEAR for n in case.proto.graph.node):
            continue
        found = verdict(baked(case))
        passed += found == "passed"
        count("onnx node cases, full rank", found)
    assert passed >= 20


def test_constants_are_made_of_inputs() -> None:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "g",
        [value(n, TensorProto.FLOAT, [3, 3]) for n in "ab"],
        [value("c", TensorProto.FLOAT, [3, 3])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {n: floats(i, 3, 3) for i, n in enumerate("ab")}
    assert verdict(baked(Case("matmul", proto, feed))) == "passed"
