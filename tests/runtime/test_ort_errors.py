"""Indices in the data that the model has no place for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lowrank.errors import DataError
from onnx_lowrank.modelfile.model import Model
from tests import fixtures_models as fm


def embedding(op: str) -> onnx.ModelProto:
    """A table of 100 rows that ``ids`` are looked up in, then a layer."""
    random = np.random.default_rng(0)
    weights = {
        "table": fm.float32(random.standard_normal((100, 8 if op != "GatherElements" else 3))),
        "two": np.array([2]),
        "w": fm.float32(random.standard_normal((3 if op == "GatherElements" else 8, 8))),
    }
    indices = "columns" if op == "GatherND" else "ids"
    nodes = [helper.make_node("Unsqueeze", ["ids", "two"], ["columns"])] * (op == "GatherND")
    nodes += [
        helper.make_node(op, ["table", indices], ["found"], name="look_up_5"),
        helper.make_node("MatMul", ["found", "w"], ["y"], name="layer"),
    ]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in weights.items() if n in used],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("Gather", "input 'ids' holds index 30522 out of range, which must be from -100 to 99"),
        ("GatherND", "input 'ids' holds index 30522 out of range; give data"),
        ("GatherElements", "input 'ids' holds an index out of range; give data"),
    ],
)
def test_an_index_out_of_range_is_the_datas_fault(op: str, said: str) -> None:
    session = fm.ONE_THREAD.session(Model(embedding(op)))
    ids = np.array([[1, 2, 5], [0, 99, 3]])
    assert session.run({"ids": ids})["y"].shape[0] == 2
    ids[1, 1] = 30522
    with pytest.raises(DataError, match=said):
        session.run({"ids": ids})


def test_commands_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(embedding("Gather"), tmp_path / "in.onnx")
    ids = np.random.default_rng(0).integers(0, 100, (60, 3))
    ids[7, 1] = 101
    np.savez(tmp_path / "ids.npz", ids=ids)
    model, data = str(tmp_path / "in.onnx"), str(tmp_path / "ids.npz")
    compress = ["compress", model, str(tmp_path / "out.onnx"), "--calib", data, "--cache", ""]
    for argv in (compress, ["validate", model, model, "--data", data]):
        fm.refused(argv, capsys, 4, "input 'ids' holds index 101 out of range")
    assert not (tmp_path / "out.onnx").exists()
