from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from rich.console import Console

from onnx_lowrank.engine.inspection import AttentionInfo, Inspection, inspect
from onnx_lowrank.errors import ModelError, OptionError
from tests import fixtures_models as fm
from tests.fixtures_attention import Form, attention


def mixed() -> ModelProto:
    """A convolution, a depthwise one, a transposed one, one in an If, and a dynamic size."""
    inner = helper.make_graph(
        [helper.make_node("Conv", ["t", "w"], ["then"], name="hidden", pads=[1] * 4)],
        "then", [], [helper.make_tensor_value_info("then", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Identity", ["t"], ["else"])],
        "else", [], [helper.make_tensor_value_info("else", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="plain", pads=[1] * 4),
        helper.make_node("Conv", ["a", "d"], ["b"], name="depthwise", group=8, pads=[1] * 4),
        helper.make_node("ConvTranspose", ["b", "t_w"], ["t"], name="up"),
        helper.make_node("If", ["yes"], ["y"], name="branch", then_branch=inner, else_branch=other),
    ]
    weights = {
        "w": fm.float32(np.ones((8, 8, 3, 3))),
        "d": fm.float32(np.ones((8, 1, 3, 3))),
        "t_w": fm.float32(np.ones((8, 8, 1, 1))),
        "yes": np.array(True),
    }
    return fm.build(nodes, {"x": ["N", 8, "H", "W"]}, {"y": None}, weights)


SIX = {"x": (1, 8, 6, 6)}


def test_layers_with_costs_and_reasons() -> None:
    found = inspect(mixed(), input_shapes=SIX)
    assert [(la.name, la.op, la.eligible) for la in found.layers] == [
        ("plain", "Conv", True),
        ("depthwise", "Conv", False),
        ("up", "ConvTranspose", True),
        ("hidden", "Conv", False),
    ]
    plain, depthwise, up, hidden = found.layers
    assert (plain.shape, plain.groups, plain.params) == ((8, 8, 3, 3), 1, 576)
    assert plain.macs == 576 * 36
    assert plain.reason == "spatial_svd, channel_svd, cp"
    assert (depthwise.groups, depthwise.macs) == (8, 72 * 36)
    assert "is depthwise" in depthwise.reason
    assert up.reason == "svd"
    assert up.macs == 64 * 36
    assert hidden.macs == 576 * 36
    assert hidden.reason == "inside branch"
    assert found.cost.macs == (576 + 72 + 64 + 576) * 36
    assert found.notes == ("of an If the branch with more MACs is counted: branch",)


def test_a_dynamic_size_is_asked_for() -> None:
    found = inspect(mixed())
    assert len(found.layers) == 4
    assert found.layers[0].macs is None
    assert "--input-shape x:1,8,224,224" in found.notes[0]
    assert found.notes[1].startswith("MACs of 4 nodes are not counted: plain (Conv: its shapes")
    assert len(found.notes) == 2


def test_a_shape_that_does_not_fit() -> None:
    with pytest.raises(OptionError, match="does not fit: the model has"):
        inspect(mixed(), input_shapes={"x": (1, 3, 6, 6)})


def test_a_shape_for_no_input() -> None:
    with pytest.raises(OptionError, match="nope"):
        inspect(fm.classifier(), input_shapes={"nope": (1, 64)})


def test_the_batch_counts_as_one() -> None:
    found = inspect(fm.classifier())
    assert found.cost.macs == 64 * 64 + 64 * 8
    assert inspect(fm.classifier(batch=4)).cost.macs == 4 * found.cost.macs


@pytest.mark.parametrize(("net", "layers"), [("mlp", 3), ("vgg", 7), ("resnet", 22)])
def test_digits(net: str, layers: int) -> None:
    path = fm.digits(net)
    found = inspect(path)
    assert len(found.layers) == layers
    assert all(la.eligible for la in found.layers)
    assert found.cost.macs == sum(la.macs or 0 for la in found.layers)
    assert found.cost.bytes == path.stat().st_size
    assert found.notes == ()


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    proto = mixed()
    before = proto.SerializeToString(deterministic=True)
    inspect(proto, input_shapes=SIX)
    assert proto.SerializeToString(deterministic=True) == before
    path = fm.external(tmp_path, fm.classifier())
    assert inspect(path).cost.bytes == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_a_model_that_does_not_run_is_still_listed() -> None:
    proto = fm.classifier()
    proto.graph.node[1].op_type = "NoSuchOperator"
    found = inspect(proto)
    assert [la.name for la in found.layers] == ["first", "second"]
    assert any("MACs are not counted everywhere" in note for note in found.notes)


def test_broken_files(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        inspect(tmp_path / "bad.onnx")


def text_of(found: Inspection, *, every: bool = False) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        found.print(console, every=every)
    return capture.get()


def test_table_and_json_say_the_same() -> None:
    found = inspect(mixed(), input_shapes=SIX)
    text = text_of(found, every=True)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["schema"] == 1
    assert data["model"]["macs"] == found.cost.macs
    assert f"{found.cost.macs:,} MACs" in text
    for layer in data["layers"]:
        assert layer["name"] in text
        assert layer["reason"] in text
    assert "8x8x3x3" in text
    assert "?" in text_of(inspect(mixed()))


def test_blocks_of_attention_are_shown() -> None:
    form = Form(heads=4, width=8, inputs=20, length=6)
    found = inspect(attention(form))
    (block,) = found.attention
    products = 2 * form.heads * form.length**2 * form.width
    assert block == AttentionInfo("n_softmax", 4, 8, products, ("n_q", "n_k", "n_v", "n_o"), "")
    console = Console(record=True, width=160)
    found.print(console)
    assert "n_q, n_k, n_v, n_o" in console.export_text()
    assert found.to_dict()["attention"][0]["heads"] == 4


def test_attention_in_one_node_is_shown() -> None:
    form = Form(heads=4, width=8, values=4, inputs=20, length=6, opset=23, node="folded")
    (block,) = inspect(attention(form)).attention
    products = form.heads * form.length**2 * (form.width + form.values)
    assert block == AttentionInfo("n_mixed", 4, 8, products, ("n_q", "n_k", "n_v", "n_o"), "")


def test_layers_that_are_alike_share_a_row() -> None:
    found = inspect(fm.digits("vit"))
    rows = {line.split()[0]: line.split() for line in text_of(found).splitlines()}
    named = {"node_MatMul_{71..251}", "node_scaled_dot_product_attention*", "node_linear_16"}
    assert named <= rows.keys()
    wide = [la for la in found.layers if la.shape == (384, 96)]
    macs = sum(la.macs or 0 for la in wide)
    assert rows["node_MatMul_{71..251}"] == [
        "node_MatMul_{71..251}", str(len(wide)), "MatMul", "384x96", f"{macs:,}",
        f"{macs / found.cost.macs:.1%}", f"{sum(la.params for la in wide):,}", "svd",
    ]  # fmt: skip
    assert rows["node_Softmax_{62..242}"][1:4] == ["4", "3", "32"]
    assert "node_MatMul_71" not in rows
    assert {la.name for la in found.layers} <= {
        line.split()[0] for line in text_of(found, every=True).splitlines()
    }


def test_a_long_model_is_short_to_read() -> None:
    width, depth = 8, 150
    weights = {f"w{n}": fm.float32(np.full((width, width), 0.1)) for n in range(2 * depth)}
    nodes = [
        helper.make_node(
            "MatMul", [f"t{n}" if n else "x", f"w{n}"], [f"t{n + 1}"],
            name=f"/layer.{n // 2}/{('up', 'down')[n % 2]}/MatMul",
        )
        for n in range(2 * depth)
    ]  # fmt: skip
    found = inspect(fm.build(nodes, {"x": [1, width]}, {f"t{2 * depth}": [1, width]}, weights))
    text = text_of(found)
    assert len(text.splitlines()) == 4
    for kind in ("up", "down"):
        assert f"/layer.{{0..149}}/{kind}/MatMul" in text
    assert text.count(" 50.0% ") == 2
    assert len(text_of(found, every=True).splitlines()) == 2 * depth + 2


def test_blocks_of_attention_that_are_alike_share_a_row() -> None:
    around = [tuple(f"enc/{n}/{part}/MatMul" for part in "qko") for n in range(12)]
    blocks = [AttentionInfo(f"enc/{n}/softmax", 4, 8, 10, a, "") for n, a in enumerate(around)]
    odd = AttentionInfo("enc/12/softmax", 2, 8, 10, around[0], "")
    cost = inspect(fm.classifier()).cost
    lines = text_of(Inspection(cost, (), (), (*blocks, odd))).splitlines()
    assert lines[2].split()[:5] == ["enc/{0..11}/softmax", "12", "4", "8", "120"]
    assert lines[2].endswith("q/MatMul, k/MatMul, o/MatMul")
    assert lines[3].split()[:4] == ["enc/12/softmax", "2", "8", "10"]
