"""Models made to harm: one line that says what to do, nothing written, little memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.engine.api import compress
from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
from tests import fixtures_models as fm
from tests.robustness.victims import floats, memory_below

Capture = pytest.CaptureFixture[str]
Spoil = Callable[[ModelProto], None]

W = floats(0, 64, 64)
X = floats(1, 40, 64)


def spoiled(change: Callable[[Any], None]) -> Spoil:
    return lambda proto: change(proto.graph)


def set_attribute(name: str, value: Any) -> Spoil:
    def change(proto: ModelProto) -> None:
        node = proto.graph.node[0]
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def circle(proto: ModelProto) -> None:
    proto.graph.node[0].input[0] = "r"


def identities_in_a_circle(proto: ModelProto) -> None:
    proto.graph.node[0].input[1] = "i"
    proto.graph.node.add(op_type="Identity", input=["j"], output=["i"])
    proto.graph.node.add(op_type="Identity", input=["i"], output=["j"])


def weight(proto: ModelProto) -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == "w1")


def dims(*values: int) -> Spoil:
    def change(proto: ModelProto) -> None:
        tensor = weight(proto)
        del tensor.dims[:]
        tensor.dims.extend(values)

    return change


def not_text(proto: ModelProto) -> None:
    proto.graph.node[0].name = "@@@@"


def data_type(number: int) -> Spoil:
    def change(proto: ModelProto) -> None:
        weight(proto).data_type = number

    return change


def in_a_branch(proto: ModelProto) -> None:
    """A tensor that is too short, where only a walk through subgraphs finds it."""
    tensor = TensorProto(name="q", data_type=TensorProto.FLOAT, dims=[2**30], raw_data=b"1234")
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["q"], ["o"])], "branch", [], [value], [tensor]
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    node = helper.make_node("If", ["c"], ["unused"], then_branch=graph, else_branch=graph)
    proto.graph.node.append(node)


BROKEN: dict[str, tuple[Spoil, str]] = {
    "circle": (circle, "its nodes form a cycle"),
    "circle of views": (identities_in_a_circle, "its nodes form a cycle"),
    "has two producers": (
        spoiled(lambda g: g.node.append(g.node[0])), "the tensor 'h' has two producers"),
    "node makes a weight": (
        spoiled(lambda g: g.node[1].output.append("w1")), "the tensor 'w1' has two producers"),
    "never made": (
        spoiled(lambda g: g.node[1].input.__setitem__(0, "zz")), "reads 'zz', which no node"),
    "output never made": (
        spoiled(lambda g: setattr(g.output[0], "name", "zz")), "no node produces its output 'zz'"),
    "no operands": (spoiled(lambda g: g.node[0].ClearField("input")), "needs 2 inputs"),
    "no weight": (spoiled(lambda g: g.node[0].input.__delitem__(slice(1, 3))), "needs 2 inputs"),
    "left out operand": (
        spoiled(lambda g: g.node[0].input.__setitem__(0, "")), "needs 2 inputs"),
    "no outputs": (spoiled(lambda g: g.node[0].ClearField("output")), "needs 1 outputs"),
    "attribute of text": (set_attribute("transB", "yes"), "'transB' of Gemm 'first' has the wrong"),
    "attribute of numbers": (set_attribute("alpha", [1, 2]), "'alpha' of Gemm 'first' has the"),
    "gigantic weight": (dims(2**40, 2**20), "declares 1099511627776x1048576"),
    "overflowing weight": (dims(2**32, 2**32), "declares 4294967296x4294967296"),
    "overflow to the true size": (dims(2**62 + 64, 64), "declares 4611686018427387968x64"),
    "negative weight": (dims(-64, -64), "has the negative shape [-64, -64]"),
    "longer weight": (dims(64, 63), "declares 64x63, 16128 bytes, and holds 16384"),
    "unknown type": (data_type(77), "has the unknown element type 77"),
    "undefined type": (data_type(0), "has the unknown element type 0"),
    "short tensor in a branch": (in_a_branch, "tensor 'q' declares 1073741824"),
    "opset 0": (lambda p: setattr(p.opset_import[0], "version", 0), "declares the opset 0"),
    "opset of nothing": (
        lambda p: setattr(p.opset_import[0], "domain", "z"), "the default opset, which is not"),
    "unknown input type": (
        spoiled(lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 99)),
        "'x' has the unknown element type 99"),
}  # fmt: skip


def arguments(model: Path, folder: Path, command: str) -> list[str]:
    data = folder / "data.npz"
    if not data.exists():
        np.savez(data, x=X)
    if command == "inspect":
        return ["inspect", str(model)]
    return ["compress", str(model), str(folder / "out.onnx"), "--calib", str(data)]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuse_both(model: Path, folder: Path, capsys: Capture, *parts: str) -> None:
    """``inspect`` and ``compress`` refuse the model, in little memory, and touch nothing."""
    both = [arguments(model, folder, c) for c in ("inspect", "compress")]
    before = files(folder)
    with memory_below(32 << 20):
        for argv in both:
            fm.refused(argv, capsys, 3, *parts)
    assert files(folder) == before


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs(case: str, tmp_path: Path, capsys: Capture) -> None:
    spoil, message = BROKEN[case]
    proto = fm.classifier()
    spoil(proto)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    refuse_both(path, tmp_path, capsys, "bad.onnx: broken model, ", message, "; export it again")


def test_names_that_are_no_text(tmp_path: Path, capsys: Capture) -> None:
    proto = fm.classifier()
    not_text(proto)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString().replace(b"@@@@", b"\xff\xfe\xff\xfe"))
    refuse_both(path, tmp_path, capsys, "a field name in it is not valid text")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"pads": [-1] * 4}, "pads [-1, -1, -1, -1]"),
        ({"strides": [0, 1]}, "strides [0, 1]"),
        ({"dilations": [1, -2]}, "dilations [1, -2]"),
        ({"kernel_shape": [3, 3], "pads": [1, 1]}, "kernel_shape [3, 3], pads [1, 1]"),
        ({"kernel_shape": [3, 3], "strides": [1] * 3}, "strides [1, 1, 1]"),
    ],
)
def test_windows_that_make_no_sense(
    attributes: dict[str, Any], message: str, tmp_path: Path, capsys: Capture
) -> None:
    """With negative pads, and the shape of its input unknown, ONNX Runtime ends the process."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", **attributes)
    proto = fm.build([node], {"x": None}, {"y": None}, {"w": floats(0, 4, 4, 3, 3)})
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    refuse_both(path, tmp_path, capsys, "has an invalid window", message)


# external data


def entries(**changes: str | None) -> Spoil:
    """Change where the first weight is said to be; None takes an entry away."""

    def change(proto: ModelProto) -> None:
        tensor = weight(proto)
        found = {e.key: e.value for e in tensor.external_data} | changes
        del tensor.external_data[:]
        for key, value in found.items():
            if value is not None:
                tensor.external_data.add(key=key, value=value)

    return change


EXTERNAL: dict[str, tuple[Spoil, str]] = {
    "negative offset": (entries(offset="-8"), "refers to 16384 at -8; export the model again"),
    "offset of words": (entries(offset="here"), "cannot be read (invalid literal"),
    "offset beyond": (entries(offset=str(2**70)), "is too short; copy it again"),
    "shorter": (entries(length="8"), "needs 16384 bytes of external data, but it refers to 8 at 0"),
    "gigantic": (
        entries(length=str(2**60)),
        "needs 16384 bytes of external data, but it refers to",
    ),
    "gigantic shape": (dims(2**40, 2**20), "refers to 16384 at 0; export the model again"),
    "nowhere": (entries(location=None), "external data file '' is missing"),
    "folder": (entries(location="."), "external data file '.' is missing"),
    "link out": (
        entries(location="out.bin"),
        "is outside the model's folder; put it beside the model",
    ),
    "link in a circle": (entries(location="loop.bin"), "external data"),
    "pipe": (entries(location="pipe.bin"), "external data file 'pipe.bin' is missing"),
    "device": (entries(location="/dev/zero"), "is outside the model's folder"),
    "long name": (entries(location="a" * 5000), "cannot be read"),
    "up and back": (entries(location="../sub/../up.bin"), "is outside the model's folder"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_broken_external_data(case: str, tmp_path: Path, capsys: Capture) -> None:
    spoil, message = EXTERNAL[case]
    (tmp_path / "sub").mkdir()
    path = fm.external(tmp_path / "sub", fm.classifier())
    (tmp_path / "up.bin").write_bytes(bytes(1 << 20))
    (tmp_path / "sub" / "out.bin").symlink_to(tmp_path / "up.bin")
    (tmp_path / "sub" / "loop.bin").symlink_to("loop.bin")
    proto = onnx.load(path, load_external_data=False)
    spoil(proto)
    path.write_bytes(proto.SerializeToString())
    if case == "pipe":
        os.mkfifo(tmp_path / "sub" / "pipe.bin")
    refuse_both(path, tmp_path, capsys, "tensor 'w1': ", message)


def constant_outside(folder: Path) -> Path:
    """A Gemm whose weight is a Constant with its values outside of the file, and one in an If."""
    value = helper.make_tensor_value_info
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["h", "v"], ["o"])],
        "branch",
        [],
        [value("o", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(floats(2, 64, 64), "v")],
    )
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W, "w")),
        helper.make_node("Gemm", ["x", "w"], ["h"], name="first"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    weights = {"c": np.array(True)}
    proto = fm.build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, weights)
    onnx.save(
        proto, folder / "in.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=1000, convert_attribute=True,
    )  # fmt: skip
    return folder / "in.onnx"


def test_external_data_of_constants_and_branches_is_checked(
    tmp_path: Path, capsys: Capture
) -> None:
    path = constant_outside(tmp_path)
    (tmp_path / "w.bin").write_bytes(bytes(64 * 64 * 4))
    refuse_both(path, tmp_path, capsys, "external data file 'w.bin' is too short")
    (tmp_path / "w.bin").unlink()
    refuse_both(path, tmp_path, capsys, "external data file 'w.bin' is missing")


def test_external_data_of_constants_and_branches_moves_with_the_model(tmp_path: Path) -> None:
    source = load(constant_outside(tmp_path))
    assert source.external
    assert source.bytes > 2 * W.nbytes
    (tmp_path / "out").mkdir()
    save(source, tmp_path / "out" / "copy.onnx", source=source)
    (tmp_path / "w.bin").rename(tmp_path / "gone.bin")
    again = onnx.load(tmp_path / "out" / "copy.onnx")
    expected = X @ W @ floats(2, 64, 64)
    assert fm.relative(fm.run(again, {"x": X})["y"], expected) < 1e-5


# files that are no files


@pytest.mark.parametrize("kind", ["pipe", "device", "large", "long name", "no permission"])
def test_places_that_are_no_models(kind: str, tmp_path: Path, capsys: Capture) -> None:
    path, message = tmp_path / "bad.onnx", "cannot be read"
    if kind in ("pipe", "device"):
        message = "not a regular file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "large":
        path.touch()
        os.truncate(path, 1 << 40)  # takes no room
        message = "larger than 2 GiB"
    elif kind == "long name":
        path = tmp_path / ("a" * 5000)
    else:
        path.touch()
        path.chmod(0)
        if os.access(path, os.R_OK):
            pytest.skip("root may read everything")
    for command in ("inspect", "compress"):
        fm.refused(arguments(path, tmp_path, command), capsys, 3, message)


# what is odd, and must work


def test_nodes_in_any_order(tmp_path: Path) -> None:
    proto = fm.classifier()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    before = proto.SerializeToString()
    result = fm.quick_compress(proto, calib={"x": X}, target="macs=0.6")
    assert [d.layer for d in result.plan.decisions] == ["first", "second"]
    assert proto.SerializeToString() == before
    assert fm.relative(fm.run(result.model, {"x": X})["y"], fm.run(proto, {"x": X})["y"]) < 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_layers_with_nan_or_infinity_are_left_alone(bad: float) -> None:
    proto = fm.residual_net()
    tensor = next(t for t in proto.graph.initializer if t.name == "w1")
    values = numpy_helper.to_array(tensor).copy()
    values[0, 0, 0, 0] = bad
    tensor.CopyFrom(numpy_helper.from_array(values, "w1"))
    layers, others = find_layers(Graph(load(proto)))
    assert [layer.name for layer in layers] == ["conv0", "conv2", "conv3"]
    assert [(o.name, o.reason) for o in others] == [("conv1", "its weight holds NaN or Inf")]
    result = fm.quick_compress(proto, target="macs=0.8", force=True)
    reasons = {d.layer: d.reason for d in result.plan.decisions}
    assert reasons["conv1"] == "its weight holds NaN or Inf"


@pytest.mark.full
def test_a_long_line_of_views() -> None:
    """Longer than Python may recurse."""
    count = sys.getrecursionlimit() + 200
    nodes = [
        helper.make_node("Identity", [f"i{k}"], [f"i{k + 1}"], name=f"id{k}") for k in range(count)
    ]
    nodes.append(helper.make_node("MatMul", ["x", f"i{count}"], ["y"], name="m"))
    proto = fm.build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, {"i0": W})
    result = fm.quick_compress(proto, calib={"x": X}, target="macs=0.6", force=True)
    assert result.report.after.macs < 0.6 * 64 * 64


def test_views_that_cannot_be_computed_are_a_reason() -> None:
    nodes = [
        helper.make_node("Reshape", ["w", "s"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    weights = {"w": W, "s": np.array([7, 7])}
    proto = fm.build(nodes, {"x": ["N", 64]}, {"y": None}, weights)
    layers, (other,) = find_layers(Graph(load(proto)))
    assert layers == []
    assert "cannot be read" in other.reason


def test_the_default_domain_by_its_name() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["v"]),
        helper.make_node("MatMul", ["x", "v"], ["y"], name="m"),
    ]
    proto = fm.build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, {"w": W})
    proto.opset_import[0].domain = "ai.onnx"
    result = fm.quick_compress(proto, calib={"x": X}, target="macs=0.6", force=True)
    assert result.report.after.macs < 0.6 * 64 * 64


def test_strides_that_do_not_fit_the_weight_are_a_reason() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", strides=[1, 1, 1])
    proto = fm.build([node], {"x": None}, {"y": None}, {"w": floats(0, 4, 4, 3, 3)})
    layers, (other,) = find_layers(Graph(load(proto)))
    assert layers == []
    assert other.reason == "strides has 3 numbers, but should have 2"


def test_norms_of_different_lengths_are_left_to_onnx_runtime(
    tmp_path: Path, capsys: Capture
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="c"),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["y"]),
    ]
    weights = {"w": floats(0, 4, 4, 3, 3), "s": floats(1, 3)}
    weights |= {k: floats(2, 4) ** 2 for k in "bmv"}
    proto = fm.build(nodes, {"x": ["N", 4, 6, 6]}, {"y": None}, weights)
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    np.savez(tmp_path / "data.npz", x=floats(3, 8, 4, 6, 6))
    argv = [*arguments(path, tmp_path, "compress"), "--target", "macs=0.7"]
    fm.refused(argv, capsys, 3, "ONNX Runtime cannot load the model")


def test_nodes_without_outputs_are_listed_by_nobody(tmp_path: Path) -> None:
    proto = fm.classifier()
    proto.graph.node.add(op_type="Print", domain="custom", input=["x"])
    proto.opset_import.add(domain="custom", version=1)
    onnx.save(proto, tmp_path / "in.onnx")
    layers, others = find_layers(Graph(load(tmp_path / "in.onnx")))
    assert ([la.name for la in layers], others) == (["first", "second"], [])


def test_what_onnx_runtime_rejects(tmp_path: Path, capsys: Capture) -> None:
    proto = fm.classifier()
    proto.ir_version = 999
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    before = files(tmp_path)
    argv = arguments(path, tmp_path, "compress")
    fm.refused(argv, capsys, 3, "ONNX Runtime cannot load the model")
    assert files(tmp_path).keys() == {*before, "data.npz"}


def test_gigantic_inputs_are_not_made_up(tmp_path: Path, capsys: Capture) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    proto = fm.build([node], {"x": [1, 4, 2**20, 2**20]}, {"y": None}, {"w": floats(0, 4, 4, 3, 3)})
    path = tmp_path / "large.onnx"
    path.write_bytes(proto.SerializeToString())
    argv = ["compress", str(path), str(tmp_path / "out.onnx")]
    fm.refused(argv, capsys, 2, "would take", "give a smaller --input-shape, or --calib")
    assert not (tmp_path / "out.onnx").exists()


def test_broken_protos_in_memory_too() -> None:
    proto = fm.classifier()
    circle(proto)
    with pytest.raises(ModelError, match="the ModelProto: broken model"):
        compress(proto)
