from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.support import AnyArray, graph_of, make_model, rng

W = rng(0).normal(size=(3, 4)).astype(np.float32)


def matmul(weight: str = "w", **options: Any) -> NodeProto:
    return helper.make_node("MatMul", ["x", weight], ["y"], name="product", **options)


def annotated() -> ModelProto:
    """Doc strings and metadata on everything that can hold them."""
    proto = make_model([matmul()], {"x": [2, 3]}, ["y"], {"w": W}, opset=21)
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.domain, proto.model_version, proto.doc_string = "org.example", 7, "model"
    helper.set_model_props(proto, {"author": "me"})
    proto.opset_import.append(helper.make_opsetid("com.example", 3))
    graph, node = proto.graph, proto.graph.node[0]
    graph.doc_string, node.doc_string, node.overload = "graph", "node", "variant"
    for holder in (graph, node, graph.initializer[0], graph.input[0]):
        holder.metadata_props.add(key="scope", value="a/b")
    graph.input[0].doc_string, graph.initializer[0].doc_string = "input", "weight"
    graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    graph.quantization_annotation.add(tensor_name="x").quant_parameter_tensor_names.add(
        key="SCALE_TENSOR", value="w"
    )
    return proto


def unusual() -> ModelProto:
    """Attributes of every kind, in a domain that nobody knows; optional inputs left out."""
    odd = helper.make_node(
        "Odd",
        ["x", "", "e"],
        ["odd", ""],
        domain="com.example",
        ints=[1, 2],
        floats=[0.5],
        strings=["a", "b"],
        tensor=numpy_helper.from_array(np.array([b"text"], object)),
        sparse=helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(1, np.float32)),
            numpy_helper.from_array(np.zeros(1, np.int64)),
            [5],
        ),
        kind=helper.make_optional_type_proto(helper.make_tensor_type_proto(1, [2])),
    )
    odd.attribute.append(helper.make_attribute("none", [], attr_type=onnx.AttributeProto.INTS))
    nodes = [odd, helper.make_node("MatMul", ["odd", "w"], ["y"])]
    weights: dict[str, AnyArray] = {"w": W, "e": np.zeros(0, np.int64)}
    proto = make_model(nodes, {"x": [2, 3]}, ["y"], weights, opset=21, domains=["com.example"])
    for element in (TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4):
        name = TensorProto.DataType.Name(element)
        proto.graph.initializer.append(helper.make_tensor(name, element, [2], [1, 2]))
        proto.graph.node.append(helper.make_node("Identity", [name], [f"{name}_out"]))
    return proto


def branch(output: str, *nodes: NodeProto) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), output, [], [value])


def conditional() -> ModelProto:
    """The weight is read by a MatMul outside and by one inside an If."""
    then = branch("t", helper.make_node("MatMul", ["x", "w"], ["inner"], name="hidden"),
                  helper.make_node("Neg", ["inner"], ["t"]))  # fmt: skip
    other = branch("e", helper.make_node("Identity", ["y"], ["e"]))
    decide = helper.make_node("If", ["c"], ["z"], then_branch=then, else_branch=other)
    weights = {"w": W, "c": np.array(True)}
    return make_model([matmul(), decide], {"x": [2, 3]}, ["y", "z"], weights)


def with_function() -> ModelProto:
    body = helper.make_node("MatMul", ["a", "b"], ["c"], name="inside")
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Twice", ["a", "b"], ["c"], [body], opsets)
    call = helper.make_node("Twice", ["x", "w"], ["y"], domain="local")
    proto = make_model([call], {"x": [2, 3]}, ["y"], {"w": W}, domains=["local"])
    proto.functions.append(function)
    return proto


def old_ir() -> ModelProto:
    """IR 3: every initializer is listed as an input."""
    proto = make_model([matmul()], {"x": [2, 3], "w": [3, 4]}, ["y"], {"w": W}, opset=9, ir=3)
    onnx.checker.check_model(proto)
    return proto


MODELS = {f.__name__: f for f in (annotated, unusual, conditional, with_function, old_ir)}


@pytest.mark.parametrize("name", MODELS)
def test_an_unedited_graph_is_written_as_it_was(name: str) -> None:
    proto = MODELS[name]()
    before = proto.SerializeToString(deterministic=True)
    written = graph_of(proto).to_model().proto
    for field in ModelProto.DESCRIPTOR.fields_by_name:
        assert getattr(written, field) == getattr(proto, field), field
    assert written.SerializeToString(deterministic=True) == before
    assert proto.SerializeToString(deterministic=True) == before
