from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.pieces import Pieces
from onnx_lowrank.runtime.segments import pieces
from tests import fixtures_models as fm

RANDOM = np.random.default_rng(0)
X, W0, W1 = (fm.float32(RANDOM.standard_normal((rows, 32))) for rows in (8, 32, 32))


def in_pieces(proto: ModelProto, size: int) -> Pieces:
    return Pieces(Model(proto), lambda part, _: fm.ONE_THREAD.session(part), size)


def test_pieces_hand_on_what_is_read_later() -> None:
    """Residual sums, an output that is an input, one that is a weight, one of the first piece."""
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Shape", ["a"], ["s"]),
        helper.make_node("MatMul", ["a", "w1"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["unused"]),
        helper.make_node("Add", ["b", "a"], ["c"]),
        helper.make_node("MatMul", ["c", "w0"], ["d"]),
        helper.make_node("Reshape", ["d", "s"], ["y"]),
    ]
    weights = {"w0": W0, "w1": W1}
    proto = fm.build(nodes, {"x": ["N", 32]}, {"y": ["N", 32]}, weights)
    for name in ("a", "x", "w1"):
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    wanted = fm.ONE_THREAD.session(Model(proto)).run({"x": X})
    assert len(pieces(Graph(Model(proto)), 100)) == 3
    session = in_pieces(proto, 100)
    found = session.run({"x": X, "other": X})
    assert list(found) == ["y", "a", "x", "w1"]
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values)
    assert list(session.run({"x": X}, ["a"])) == ["a"]
    assert session.turn({"x": X})[0] > 0
    with pytest.raises(ModelError, match="the input 'x' is not given"):
        session.run({})


def test_sequences_between_pieces_are_refused() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("SequenceConstruct", ["a", "x"], ["q"]),
        helper.make_node("MatMul", ["x", "w1"], ["b"]),
        helper.make_node("SequenceAt", ["q", "i"], ["c"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    weights = {"w0": W0, "w1": W1, "i": np.array(0)}
    proto = fm.build(nodes, {"x": ["N", 32]}, {"y": None}, weights)
    with pytest.raises(ModelError, match="'q' is not a tensor"):
        in_pieces(proto, 100).run({"x": X})
