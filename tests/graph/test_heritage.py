"""What stays of a node, of an initializer and of the interface when a model is compressed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.graph.protos import overridable, weights_as_inputs
from onnx_lowrank.planning.notes import WeightsAsInputs
from onnx_lowrank.report.wording import worded
from tests import fixtures_models as fm
from tests.support import AnyArray, make_model, relative, rng, run


def low(rows: int, columns: int, rank: int, seed: int) -> AnyArray:
    """A matrix of nearly this rank."""
    random = rng(seed)
    left, right = random.normal(size=(rows, rank)), random.normal(size=(rank, columns))
    noise = 0.05 * random.normal(size=(rows, columns))
    return ((left @ right / rank**0.5 + noise) / rows**0.5).astype(np.float32)


def bias(size: int, seed: int) -> AnyArray:
    return (0.1 * rng(seed).normal(size=size)).astype(np.float32)


def annotate(node: NodeProto) -> NodeProto:
    node.doc_string = f"doc of {node.name}"
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', '{node.name}']")
    return node


X = rng(9).normal(size=(120, 32)).astype(np.float32)


def net(kind: str, **options: Any) -> ModelProto:
    """Two annotated layers: one of low rank to take apart, one to be solved again behind it."""
    one, two = low(32, 32, 4, 1), low(32, 10, 10, 2)
    weights: dict[str, AnyArray] = {"b1": bias(32, 3), "b2": bias(10, 4)}
    relu = helper.make_node("Relu", ["h"], ["a"], name="relu")
    if kind == "gemm":
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="one"),
            relu,
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="two", alpha=0.5, beta=2.0),
        ]
        weights |= {"w1": one, "w2": two}
    elif kind == "gemm transB":
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="one", transB=1),
            relu,
            helper.make_node("Gemm", ["a", "w2", "b2"], ["y"], name="two", transB=1),
        ]
        weights |= {"w1": one.T.copy(), "w2": two.T.copy()}
    elif kind == "matmul":
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h0"], name="one"),
            helper.make_node("Add", ["h0", "b1"], ["h"], name="one_add"),
            relu,
            helper.make_node("MatMul", ["a", "w2"], ["y0"], name="two"),
            helper.make_node("Add", ["b2", "y0"], ["y"], name="two_add"),
        ]
        weights |= {"w1": one, "w2": two}
    else:
        nodes = [
            helper.make_node("Unsqueeze", ["x", "axes"], ["x4"], name="in"),
            helper.make_node("Conv", ["x4", "w1", "b1"], ["h"], name="one"),
            relu,
            helper.make_node("Conv", ["a", "w2", "b2"], ["y4"], name="two", auto_pad="VALID"),
            helper.make_node("Squeeze", ["y4", "axes"], ["y"], name="out"),
        ]
        axes = np.array([2, 3])
        weights |= {"w1": one.T[..., None, None], "w2": two.T[..., None, None], "axes": axes}
    opset = options.pop("opset", 17)
    proto = make_model(
        [annotate(n) for n in nodes], {"x": ["N", 32]}, ["y"], weights, opset=opset, **options
    )
    for tensor in proto.graph.initializer:
        tensor.doc_string = f"doc of {tensor.name}"
        tensor.metadata_props.add(key="from", value=tensor.name)
    for name, array in weights.items():
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape)
        if array.dtype == np.float32:
            info.metadata_props.add(key="of", value=name)
            proto.graph.value_info.append(info)
    for name in ("h", "a"):
        shape = ["N", 32, 1, 1] if kind == "conv" else ["N", 32]
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        info.metadata_props.add(key="of", value=name)
        proto.graph.value_info.append(info)
    return proto


def compressed(proto: ModelProto | Path, **options: Any) -> Any:
    options = {"ranks": "fixed=8", "include": ["one"], "passes": "svd", "force": True} | options
    return fm.quick_compress(proto, calib={"x": X}, **options)


def by_name(proto: ModelProto) -> dict[str, NodeProto]:
    return {n.name: n for n in proto.graph.node}


KINDS = ("gemm", "gemm transB", "matmul", "conv")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_is_solved_again_stays_whole(kind: str) -> None:
    proto = net(kind)
    made = compressed(proto, include=["*"], ranks="error=0.05").model
    before = by_name(proto)
    after = by_name(made)
    assert {n for n in before if n.startswith("two")} <= after.keys()
    for name in before.keys() & after.keys():
        old, new = before[name], NodeProto()
        new.CopyFrom(after[name])
        assert list(new.input) == list(old.input), name
        scales = {"alpha", "beta"}
        kept = [a for a in old.attribute if a.name not in scales]
        assert sorted(new.attribute, key=lambda a: a.name) == sorted(kept, key=lambda a: a.name)
        assert (new.doc_string, new.metadata_props) == (old.doc_string, old.metadata_props)
    olds = {t.name: t for t in proto.graph.initializer}
    news = {t.name: t for t in made.graph.initializer}
    changed = [n for n in ("w2", "b2") if news[n].raw_data != olds[n].raw_data]
    assert changed  # or the layer would not have been solved
    for name in olds.keys() & news.keys():
        assert news[name].dims == olds[name].dims, name
        assert news[name].doc_string == f"doc of {name}"
        assert [(p.key, p.value) for p in news[name].metadata_props] == [("from", name)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_node_of_a_chain_is_annotated_as_what_it_replaces(kind: str) -> None:
    proto = net(kind)
    made = compressed(proto).model
    old = by_name(proto)
    new = [n for n in made.graph.node if n.name not in old]
    assert len(new) == (3 if kind == "matmul" else 2)
    for node in new:
        source = old["one_add" if node.op_type == "Add" else "one"]
        assert node.doc_string == source.doc_string
        assert list(node.metadata_props) == list(source.metadata_props)


def test_what_is_declared_of_tensors_stays_where_it_is_true() -> None:
    proto = net("gemm")
    made = compressed(proto).model
    declared = {v.name: v for v in made.graph.value_info}
    assert declared.keys() == {"h", "a", "w2", "b2"}
    for value in proto.graph.value_info:
        if value.name in declared:
            assert declared[value.name] == value


def test_device_annotations_and_overload_stay() -> None:
    proto = net("gemm", opset=21)
    proto.ir_version = 11
    proto.configuration.add(name="two devices", num_devices=2)
    for node in proto.graph.node:
        node.overload = "a"
        annotation = node.device_configurations.add(configuration_id="two devices")
        annotation.pipeline_stage = 1
        for name in (*node.input, *node.output):
            annotation.sharding_spec.add(tensor_name=name, device=[0, 1])
    made = compressed(proto).model
    assert made.configuration == proto.configuration
    assert {n.overload for n in made.graph.node} == {"a"}
    for node in made.graph.node:
        (annotation,) = node.device_configurations
        assert (annotation.configuration_id, annotation.pipeline_stage) == ("two devices", 1)
        specs = {s.tensor_name for s in annotation.sharding_spec}
        assert specs <= {*node.input, *node.output}
        if node.name in ("relu", "two"):
            assert specs == {*node.input, *node.output}


def test_a_name_that_somebody_else_reads_is_not_taken() -> None:
    proto = net("gemm")
    proto.graph.node.append(helper.make_node("ReduceSum", ["w2"], ["s"], name="sum"))
    proto.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1, 1]))
    made = compressed(proto).model
    (old,) = (t for t in proto.graph.initializer if t.name == "w2")
    assert old in made.graph.initializer
    assert relative(run(proto, {"x": X})["s"], run(made, {"x": X})["s"]) == 0


def test_a_folded_layer_remembers_both_nodes() -> None:
    conv = annotate(helper.make_node("Conv", ["x", "w"], ["c"], name="conv"))
    norm = annotate(helper.make_node("BatchNormalization", ["c", *"gbmv"], ["y"], name="norm"))
    norm.metadata_props.add(key="only", value="here")
    ones = dict.fromkeys("gbmv", np.ones(8, np.float32))
    weights = {"w": rng(1).normal(size=(8, 4, 3, 3)).astype(np.float32), **ones}
    proto = make_model([conv, norm], {"x": ["N", 4, 6, 6]}, ["y"], weights)
    result = fm.quick_compress(proto, ranks="fixed=4", passes="fold_batchnorm,svd", force=True)
    (node,) = result.model.graph.node
    assert node.name == "conv"
    assert node.doc_string == "doc of conv"
    assert {p.key: p.value for p in node.metadata_props} == {
        "pkg.torch.onnx.name_scopes": "['', 'conv']", "only": "here",
    }  # fmt: skip


def test_pruned_layers_keep_the_names_of_their_weights() -> None:
    proto = net("conv")
    result = compressed(proto, include=["*"], ranks="planner", target="macs=0.6",
                        passes="prune_channels")  # fmt: skip
    names = {t.name: t for t in result.model.graph.initializer}
    assert names.keys() == {t.name for t in proto.graph.initializer}
    assert names["w2"].dims[1] < 32
    assert names["w1"].doc_string == "doc of w1"
    declared = {v.name for v in result.model.graph.value_info}
    assert not declared & {"w1", "w2", "b1"}  # their shapes are no longer true
    onnx.checker.check_model(result.model)


# overridable initializers


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_callers_may_override_is_left_alone(kind: str) -> None:
    proto = net(kind)
    array = next(t for t in proto.graph.initializer if t.name == "w1")
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, array.dims))
    (layer,) = (x for x in inspect(proto).layers if x.name == "one")
    assert "its weight w1 is also an input of the graph" in (layer.reason or "")
    result = compressed(proto, include=["*"], ranks="fixed=8")
    assert list(result.model.graph.input) == list(proto.graph.input)
    assert array in result.model.graph.initializer
    (decision,) = (d for d in result.plan.decisions if d.layer == "one")
    assert decision.decision == "skip"
    assert "its weight w1 is also an input of the graph" in decision.reason
    other = {"x": X, "w1": np.zeros(tuple(array.dims), np.float32)}
    assert relative(run(proto, other)["y"], run(result.model, other)["y"]) < 0.2


def test_an_overridable_bias_is_not_built_in() -> None:
    proto = net("gemm")
    proto.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [32]))
    (layer,) = (x for x in inspect(proto).layers if x.name == "one")
    assert "its bias b1 is also an input of the graph" in (layer.reason or "")
    product = net("matmul")
    product.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [32]))
    result = compressed(product)
    assert [i.name for i in result.model.graph.input] == ["x", "b1"]
    assert "one_add" in by_name(result.model)
    assert result.report.validation.outputs[0].relative_error < 0.3


def all_listed(proto: ModelProto) -> ModelProto:
    """The same with all initializers among the inputs."""
    for tensor in proto.graph.initializer:
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)
    return proto


@pytest.mark.parametrize("kind", KINDS)
def test_where_exporters_listed_every_initializer_they_are_constants(kind: str) -> None:
    proto = all_listed(net(kind))
    assert all(not layer.reason.startswith("its") for layer in inspect(proto).layers)
    result = compressed(proto)
    onnx.checker.check_model(result.model)
    assert [i.name for i in result.model.graph.input] == ["x"]
    assert relative(run(proto, {"x": X})["y"], run(result.model, {"x": X})["y"]) < 0.3
    (note,) = (n for n in result.report.notes if isinstance(n, WeightsAsInputs))
    assert note.initializers == len(proto.graph.initializer)
    assert "initializers are listed as inputs too" in worded(note)


def test_what_is_listed_beside_weights_that_nodes_hold_may_be_fed() -> None:
    proto = net("gemm")
    held = next(t for t in proto.graph.initializer if t.name == "w1")
    start = numpy_helper.from_array(np.zeros((1, 32), np.float32), "start")
    for kept in ([], [held]):
        copy = ModelProto()
        copy.CopyFrom(proto)
        del copy.graph.initializer[:]
        copy.graph.initializer.extend([start, *kept])
        all_listed(copy)
        if not kept:
            copy.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=held))
        assert weights_as_inputs(copy) == 2 * len(kept)
        assert overridable(copy) == (set() if kept else {"start"})
    scale = numpy_helper.from_array(np.ones(1, np.float32), "scale")
    del copy.graph.initializer[:], copy.graph.input[1:]
    copy.graph.initializer.append(scale)
    assert overridable(all_listed(copy)) == {"scale"}


def test_before_ir_4_every_initializer_is_an_input() -> None:
    proto = all_listed(net("gemm", opset=9, ir=3))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10]))
    onnx.checker.check_model(proto)
    made = compressed(proto).model
    onnx.checker.check_model(made)
    assert {i.name for i in made.graph.input} == {"x"} | {t.name for t in made.graph.initializer}
    assert {"w2", "b2"} < {i.name for i in made.graph.input}
    assert not {"w1", "b1"} & {i.name for i in made.graph.input}


def test_channels_with_overridable_numbers_are_not_pruned() -> None:
    proto = net("conv")
    proto.graph.input.append(helper.make_tensor_value_info("b1", TensorProto.FLOAT, [32]))
    result = compressed(proto, include=["*"], ranks="planner", target="macs=0.9",
                        passes="prune_channels,svd")  # fmt: skip
    assert not any(g.shrinks for g in result.plan.groups)
    assert [i.name for i in result.model.graph.input] == ["x", "b1"]


# files of weights


def spread(folder: Path, proto: ModelProto, files: dict[str, str]) -> Path:
    """``proto`` with some initializers in files."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    places: dict[str, int] = {}
    for tensor in copy.graph.initializer:
        if tensor.name in files:
            name, payload = files[tensor.name], tensor.raw_data
            offset = places.get(name, 0)
            with (folder / name).open("ab") as file:
                file.write(payload)
            places[name] = offset + len(payload)
            tensor.ClearField("raw_data")
            for key, value in (("location", name), ("offset", offset), ("length", len(payload))):
                tensor.external_data.add(key=key, value=str(value))
            tensor.data_location = TensorProto.EXTERNAL
    path = folder / "in.onnx"
    onnx.save(copy, path)
    return path


def locations(path: Path) -> dict[str, str]:
    """The file of each initializer; empty for the model file."""
    proto = onnx.load(path, load_external_data=False)
    return {
        t.name: next((e.value for e in t.external_data if e.key == "location"), "")
        for t in proto.graph.initializer
    }


@pytest.mark.parametrize("elsewhere", [False, True])
def test_weights_stay_in_as_many_files(tmp_path: Path, elsewhere: bool) -> None:
    files = {"w1": "one.bin", "b1": "two.bin", "w2": "in.onnx.part", "b2": "four.bin"}
    proto = net("gemm")
    source = spread(tmp_path, proto, files)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    folder = tmp_path / "other" if elsewhere else tmp_path
    folder.mkdir(exist_ok=True)
    result = compressed(source)
    result.save(folder / "out.onnx")
    found = locations(folder / "out.onnx")
    assert found["w2"] == "out.onnx.part"
    assert found["b2"] == "out.onnx.four.bin"
    chain = {v for k, v in found.items() if k.startswith("one_")}
    assert chain == {"out.onnx.one.bin"}
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name in before} == before
    ours = {p.name for p in folder.iterdir()} - before.keys() - {"other"}
    assert ours == {"out.onnx", *found.values()}
    wanted = run(compressed(proto).model, {"x": X})["y"]
    assert relative(wanted, fm.run(folder / "out.onnx", {"x": X})["y"]) < 1e-6


def test_what_lay_in_the_model_file_stays_there(tmp_path: Path) -> None:
    source = spread(tmp_path, net("gemm"), {"w1": "one.bin"})
    result = compressed(source, include=["two"], ranks="fixed=4")
    result.save(tmp_path / "out.onnx")
    found = locations(tmp_path / "out.onnx")
    assert found.pop("w1") == "out.onnx.data"
    assert set(found.values()) == {""}
