"""MACs by hand of every operator that contracts, of bodies, and of what cannot be counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.bodies import flatten
from onnx_lowrank.analysis.cost import model_cost, tensor_shapes
from onnx_lowrank.analysis.counting import Counts, Uncounted, count
from onnx_lowrank.analysis.einsum_macs import einsum_macs
from onnx_lowrank.analysis.mac_formulas import MICROSOFT
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from tests import fixtures_models as fm

Shapes = dict[str, tuple[int, ...]]


def counted(proto: ModelProto, run: bool = False, **inputs: tuple[int, ...]) -> Counts:
    """Counts by inference alone, or by a run on random inputs too."""
    model = load(proto)
    rng = np.random.default_rng(0)
    feed = {k: rng.standard_normal(v).astype(np.float32) for k, v in inputs.items()}
    runtime = fm.ONE_THREAD if run else None
    shapes = tensor_shapes(model, inputs, feed if run else None, runtime)
    return count(flatten(model), shapes)


def node_of(op: str, domain: str, operands: int, **attributes: Any) -> ModelProto:
    names = [f"i{k}" for k in range(operands)]
    node = helper.make_node(op, names, ["y"], name="it", domain=domain, **attributes)
    return fm.build([node], dict.fromkeys(names), {"y": None}, {})


def test_operators_by_hand() -> None:
    two = (2, 3)  # stands for operands that no formula reads
    table: list[tuple[str, str, list[tuple[int, ...]], tuple[int, ...], dict[str, Any], int]] = [
        ("ConvInteger", "", [(1, 3, 8, 8), (5, 3, 3, 3)], (1, 5, 6, 6), {}, 5 * 27 * 36),
        ("QLinearConv", "", [(1, 3, 8, 8), (), (), (5, 3, 3, 3)], (1, 5, 6, 6), {}, 5 * 27 * 36),
        ("QLinearConv", MICROSOFT, [(1, 8, 8, 3), (), (), (5, 3, 3, 3)], (1, 6, 6, 5),
         {"channels_last": 1}, 5 * 27 * 36),
        ("DeformConv", "", [(1, 4, 5, 5), (6, 2, 3, 3), (1, 18, 3, 3)], (1, 6, 3, 3), {"group": 2},
         6 * 2 * 9 * 9),
        ("ConvTranspose", "", [(2, 4, 3, 3, 3), (4, 2, 2, 2, 2)], (2, 6, 6, 6, 6), {"group": 3},
         2 * 27 * 4 * 2 * 8),
        ("FusedConv", MICROSOFT, [(1, 3, 8), (5, 3, 3)], (1, 5, 6), {}, 5 * 9 * 6),
        ("NhwcFusedConv", MICROSOFT, [(1, 8, 8, 3), (5, 3, 3, 3)], (1, 6, 6, 5), {}, 5 * 27 * 36),
        ("MatMulInteger", "", [(2, 5, 7), (7, 4)], (2, 5, 4), {}, 2 * 5 * 7 * 4),
        ("QLinearMatMul", "", [(5, 7), (), (), (7, 4)], (5, 4), {}, 5 * 7 * 4),
        ("MatMulIntegerToFloat", MICROSOFT, [(5, 7), (7, 4)], (5, 4), {}, 5 * 7 * 4),
        ("DynamicQuantizeMatMul", MICROSOFT, [(5, 7), (7, 4)], (5, 4), {}, 5 * 7 * 4),
        ("MatMulNBits", MICROSOFT, [(1, 5, 64), (48, 2, 16)], (1, 5, 48), {"K": 64, "N": 48},
         5 * 64 * 48),
        ("QGemm", MICROSOFT, [(7, 5), (), (), (7, 4)], (5, 4), {"transA": 1}, 5 * 7 * 4),
        ("FusedGemm", MICROSOFT, [(5, 7), (7, 4)], (5, 4), {}, 5 * 7 * 4),
        ("FusedMatMul", MICROSOFT, [(2, 7, 5), (2, 7, 4)], (2, 5, 4), {"transA": 1}, 2 * 5 * 7 * 4),
        ("FusedMatMul", MICROSOFT, [(5, 2, 7), (2, 7, 4)], (2, 5, 4), {"transBatchA": 1},
         2 * 5 * 7 * 4),
        ("TransposeMatMul", MICROSOFT, [(5, 7), (4, 7)], (5, 4), {"transB": 1}, 5 * 7 * 4),
        ("DynamicQuantizeLSTM", MICROSOFT, [(6, 1, 3), (1, 3, 20), (1, 5, 20)], two, {},
         6 * 20 * 8),
        ("Attention", MICROSOFT, [(2, 6, 64), (64, 192)], (2, 6, 64), {"num_heads": 4},
         2 * (6 * 64 * 192 + 2 * 6 * 6 * 64)),
        ("Attention", MICROSOFT, [(1, 6, 64), (64, 80)], (1, 6, 32),
         {"num_heads": 4, "qkv_hidden_sizes": [24, 24, 32]}, 6 * 64 * 80 + 6 * 6 * (24 + 32)),
        ("Attention", MICROSOFT, [(1, 2, 64), (64, 192), (192,), (), (2, 1, 4, 9, 16)],
         (1, 2, 64), {"num_heads": 4}, 2 * 64 * 192 + 2 * 2 * 11 * 64),
        ("QAttention", MICROSOFT, [(1, 6, 64), (64, 192)], (1, 6, 64), {"num_heads": 4},
         6 * 64 * 192 + 2 * 6 * 6 * 64),
        ("MultiHeadAttention", MICROSOFT, [(1, 6, 64), (1, 9, 64), (1, 9, 32)], (1, 6, 32),
         {"num_heads": 4}, 6 * 9 * (64 + 32)),
        ("MultiHeadAttention", MICROSOFT, [(1, 6, 64), (1, 4, 9, 16), (1, 4, 9, 16)], (1, 6, 64),
         {"num_heads": 4}, 2 * 6 * 9 * 64),
        ("MultiHeadAttention", MICROSOFT, [(1, 6, 4, 3, 16)], (1, 6, 64), {"num_heads": 4},
         2 * 6 * 6 * 64),
        ("GroupQueryAttention", MICROSOFT, [(1, 3, 64), (1, 3, 32), (1, 3, 32), (1, 2, 5, 16)],
         (1, 3, 64), {"num_heads": 4, "kv_num_heads": 2}, 2 * 3 * 8 * 64),
        ("Attention", "", [(2, 6, 64), (2, 9, 32), (2, 9, 48)], (2, 6, 96),
         {"q_num_heads": 4, "kv_num_heads": 2}, 2 * 6 * 9 * (64 + 4 * 24)),
        ("Attention", "", [(2, 4, 6, 16), (2, 2, 9, 16), (2, 2, 9, 24)], (2, 4, 6, 24), {},
         2 * 4 * 6 * 9 * (16 + 24)),
        ("Einsum", "", [(2, 6, 64), (64, 256)], (2, 6, 256), {"equation": "bij,jk->bik"},
         2 * 6 * 64 * 256),
        ("LinearRegressor", "ai.onnx.ml", [(5, 7)], (5, 2), {"coefficients": [1.0] * 14}, 5 * 14),
        ("SkipLayerNormalization", MICROSOFT, [two, two], two, {}, 0),
        ("Softmax", "", [two], two, {}, 0),
    ]  # fmt: skip
    wrong = []
    for op, domain, shapes, y, attributes, macs in table:
        proto = node_of(op, domain, len(shapes), **attributes)
        given = {f"i{k}": shape for k, shape in enumerate(shapes)} | {"y": y}
        counts = count(flatten(Model(proto)), given)
        if (counts.macs, counts.uncounted) != (macs, ()):
            wrong.append((domain, op, attributes, counts, macs))
        if macs:  # without shapes it is named, not 0
            assert [n.name for n in count(flatten(Model(proto)), {}).uncounted] == ["it"]
    assert wrong == []


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("ij->ji", [(3, 4)], 0),
        ("ij,jk", [(3, 4), (4, 5)], 60),
        ("bhqd,bhkd->bhqk", [(2, 4, 6, 8), (2, 4, 7, 8)], 2 * 4 * 6 * 7 * 8),
        ("...ij,...jk->...ik", [(2, 3, 4, 5), (3, 5, 6)], 2 * 3 * 4 * 5 * 6),
        ("...ij,jk", [(2, 4, 5), (5, 6)], 2 * 4 * 5 * 6),
        ("i,j->ij", [(3,), (4,)], 12),
        # (A B) C costs 100 * 2 * 100 + 100 * 100 * 2, A (B C) 2 * 100 * 2 + 100 * 2 * 2
        ("ij,jk,kl->il", [(100, 2), (2, 100), (100, 2)], 800),
    ],
)
def test_einsum_by_hand(equation: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    assert einsum_macs(equation, shapes) == macs


def test_many_operands_of_an_einsum_go_from_left_to_right() -> None:
    equation = ",".join(f"{a}{b}" for a, b in zip("abcdefghij", "bcdefghijk", strict=True))
    assert einsum_macs(f"{equation}->ak", [(2, 2)] * 10) == 9 * 8


def product(x: str, weight: str, y: str, name: str) -> NodeProto:
    return helper.make_node("MatMul", [x, weight], [y], name=name)


def weights(**shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: fm.float32(np.ones(shape)) for name, shape in shapes.items()}


def floats(name: str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def test_each_call_of_a_function_counts_with_its_own_shapes() -> None:
    body = [helper.make_node("MatMul", ["X", "W"], ["h"]),
            helper.make_node("LeakyRelu", ["h"], ["r"])]  # fmt: skip
    body[1].attribute.add(name="alpha", ref_attr_name="slope", type=1)
    body.append(helper.make_node("Inner", ["r", "V"], ["Y"], domain="my"))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    functions = [
        helper.make_function("my", "Mlp", ["X", "W", "V"], ["Y"], body, opsets, ["slope"]),
        helper.make_function(
            "my", "Inner", ["X", "W"], ["Y"], [product("X", "W", "Y", "deep")], opsets
        ),
    ]
    nodes = [
        helper.make_node("Mlp", ["x", "a", "b"], ["h"], domain="my", name="one", slope=0.1),
        helper.make_node("Mlp", ["h", "c", "a"], ["y"], domain="my", name="two", slope=0.2),
    ]
    given = weights(a=(8, 16), b=(16, 4), c=(4, 8))
    proto = fm.build(nodes, {"x": ["N", 8]}, {"y": None}, given)
    proto.functions.extend(functions)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    counts = counted(proto, x=(3, 8))
    assert [n.macs for n in counts.nodes] == [3 * 128, 3 * 64, 3 * 32, 3 * 128]
    assert counts.macs == 3 * (128 + 64 + 32 + 128)
    assert counts.of("h", main=False) == 3 * (128 + 32)
    assert {str(n) for n in counts.nodes} >= {"deep (MatMul in Inner Y)"}
    parameters = model_cost(load(proto), tensor_shapes(load(proto), {"x": (3, 8)})).parameters
    assert parameters == 128 + 64 + 32


def branch(name: str, *nodes: NodeProto) -> GraphProto:
    return helper.make_graph(list(nodes), name, [], [floats(nodes[-1].output[0])])


def test_of_an_if_the_larger_branch_counts() -> None:
    small = branch("small", product("x", "w", "s", "one"))
    large = branch("large", product("x", "w", "t", "two"), product("t", "w", "u", "three"))
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=small, else_branch=large)
    given = weights(w=(8, 8)) | {"c": np.array(True)}
    counts = counted(fm.build([node], {"x": ["N", 8]}, {"y": None}, given), x=(3, 8))
    assert (counts.macs, counts.larger) == (2 * 3 * 64, ("if",))


def test_a_branch_that_cannot_run_does_not_hide_the_other() -> None:
    # both have shapes that depend on data; five columns cannot be seven
    taken = branch("taken", helper.make_node("Compress", ["x", "rows"], ["s"], axis=0),
                   product("s", "w", "t", "taken product"))  # fmt: skip
    broken = branch("broken", helper.make_node("Expand", ["kept", "seven"], ["u"]),
                    product("u", "w", "v", "broken product"))  # fmt: skip
    nodes = [
        helper.make_node("Greater", ["x", "low"], ["places"]),
        helper.make_node("ReduceMax", ["x"], ["most"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["most", "low"], ["rows"]),
        helper.make_node("Compress", ["x", "rows"], ["kept"], axis=0),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=taken, else_branch=broken),
    ]
    given = weights(w=(8, 8)) | {
        "c": np.array(True), "seven": np.array([7, 7]), "low": np.array(-9, np.float32)
    }  # fmt: skip
    counts = counted(fm.build(nodes, {"x": ["N", 8]}, {"y": None}, given), run=True, x=(3, 8))
    assert counts.macs == 3 * 64
    assert [n.name for n in counts.uncounted] == ["broken product"]


def looped(limit: Any, going: str = "Identity", scanned: bool = False) -> ModelProto:
    """``rounds`` of ``h = h w``, which end by ``limit``, or by a condition on the data."""
    body = [product("h", "w", "next", "in loop")]
    if going == "Identity":
        body.append(helper.make_node("Identity", ["c"], ["again"]))
    else:
        body += [
            helper.make_node("ReduceSum", ["next"], ["sum"], keepdims=0),
            helper.make_node("Less", ["sum", "far"], ["again"]),
        ]
    outputs = [helper.make_tensor_value_info("again", TensorProto.BOOL, []), floats("next")]
    if scanned:
        body.append(helper.make_node("Identity", ["next"], ["seen"]))
        outputs.append(floats("seen"))
    graph = helper.make_graph(
        body, "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("c", TensorProto.BOOL, []), floats("h")],
        outputs,
    )  # fmt: skip
    made = ["y", *(["all"] if scanned else [])]
    nodes = [helper.make_node("Loop", ["limit", "", "x"], made, name="loop", body=graph)]
    given = weights(w=(8, 8)) | {"far": np.array(1e30, np.float32)}
    if limit == "rows":  # as many rounds as there are rows
        nodes[:0] = [helper.make_node("Shape", ["x"], ["shape"]),
                     helper.make_node("Gather", ["shape", "zero"], ["limit"])]  # fmt: skip
        given |= {"zero": np.array(0)}
    else:
        given |= {"limit": np.array(limit)}
    return fm.build(nodes, {"x": ["N", 8]}, dict.fromkeys(made), given)


def test_loops_count_once_a_round() -> None:
    assert counted(looped(5), x=(3, 8)).macs == 5 * 3 * 64
    assert counted(looped("rows"), run=True, x=(3, 8)).macs == 3 * 3 * 64
    # 1, 8, 64 .. until the sum is far, told by what is scanned
    counts = counted(looped(1000, "Less", scanned=True), run=True, x=(3, 8))
    assert 0 < counts.macs < 1000 * 3 * 64
    assert counts.macs % (3 * 64) == 0


@pytest.mark.parametrize("proto", [looped(5, "Less"), looped(2**62)])
def test_loops_of_unknown_length_are_named(proto: ModelProto) -> None:
    counts = counted(proto, run=False, x=(3, 8))
    (left,) = counts.uncounted
    assert (counts.macs, left.name, left.op) == (0, "in loop", "MatMul")
    assert left.reason == "it stands inside Loop loop, whose number of rounds is not known"


def test_a_scan_counts_once_a_slice() -> None:
    body = helper.make_graph(
        [product("row", "w", "out", "in scan"), helper.make_node("Identity", ["s"], ["t"])],
        "body", [floats("s"), floats("row")], [floats("t"), floats("out")],
    )  # fmt: skip
    node = helper.make_node("Scan", ["z", "x"], ["end", "y"], name="scan", body=body,
                            num_scan_inputs=1, scan_input_axes=[1])  # fmt: skip
    given = weights(w=(8, 4), z=(1,))
    proto = fm.build([node], {"x": [2, 7, 8]}, {"y": None, "end": None}, given)
    assert counted(proto, x=(2, 7, 8)).macs == 7 * 2 * 8 * 4


def test_what_cannot_be_counted_is_named() -> None:
    nodes = [
        helper.make_node("Own", ["x"], ["a"], domain="com.example", name="own"),
        helper.make_node("MoE", ["x"], ["b"], domain=MICROSOFT, name="experts"),
        helper.make_node("DFT", ["x"], ["c"], name="waves"),
    ]
    proto = fm.build(nodes, {"x": ["N", 8]}, {"a": None, "b": None, "c": None}, {})
    left = counted(proto, x=(3, 8)).uncounted
    assert [(n.name, n.op) for n in left] == [("own", "Own"), ("experts", "MoE"), ("waves", "DFT")]
    said = Uncounted.said(left)
    assert said.startswith("MACs of 3 nodes are not counted: own (Own: what operators of com.exam")
    assert "waves (DFT: its work depends on the algorithm)" in said


def test_a_function_that_calls_itself_ends() -> None:
    body = [helper.make_node("Again", ["X"], ["Y"], domain="my")]
    proto = fm.build([helper.make_node("Again", ["x"], ["y"], domain="my", name="it")],
                     {"x": ["N", 8]}, {"y": None}, {})  # fmt: skip
    opsets = [helper.make_opsetid("my", 1)]
    proto.functions.append(helper.make_function("my", "Again", ["X"], ["Y"], body, opsets))
    counts = count(flatten(load(proto)), {})
    assert [n.op for n in counts.uncounted] == ["Again"]


def test_shapes_of_contrib_nodes_come_from_a_run_that_keeps_nothing() -> None:
    nodes = [
        helper.make_node("FastGelu", ["x"], ["a"], domain=MICROSOFT),
        helper.make_node("NonZero", ["a"], ["places"]),
        helper.make_node("Cast", ["places"], ["b"], to=1),
        helper.make_node("FusedMatMul", ["b", "b"], ["y"], domain=MICROSOFT, transB=1, name="f"),
    ]
    proto = fm.build(nodes, {"x": ["N", 8]}, {"y": None}, {})
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    assert [n.name for n in counted(proto, x=(3, 8)).uncounted] == ["f"]
    assert counted(proto, run=True, x=(3, 8)).macs == 2 * 24 * 2  # two rows of 24 places


def test_sequences_do_not_stop_the_rest() -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "first"], ["part"]),
        product("part", "w", "y", "product"),
    ]
    given = weights(w=(1, 4)) | {"first": np.array(0)}
    proto = fm.build(nodes, {"x": ["N", 8]}, {"y": None}, given)
    model, x = load(proto), np.ones((3, 8), np.float32)
    every = [o for n in proto.graph.node for o in n.output]
    shapes = tensor_shapes(model, {"x": (3, 8)}, {"x": x}, fm.ONE_THREAD, wished=every)
    assert shapes["y"] == (3, 4)
    assert "parts" not in shapes
    assert count(flatten(model), shapes).macs == 12


def test_parameters_of_every_type() -> None:
    def raw(kind: int, name: str, *dims: int, size: int) -> TensorProto:
        return helper.make_tensor(name, kind, dims, bytes(size), raw=True)

    tensors = [
        raw(TensorProto.FLOAT8E4M3FN, "f8", 4, 3, size=12),
        raw(TensorProto.INT4, "i4", 5, 3, size=8),
        raw(TensorProto.INT8, "i8", 2, 3, size=6),
        raw(TensorProto.FLOAT, "scale", size=4),
        raw(TensorProto.INT32, "i32", 7, size=28),
        raw(TensorProto.INT64, "index", 9, size=72),
        raw(TensorProto.UINT8, "nbits", 48, 2, 16, size=48 * 32),
        raw(TensorProto.FLOAT, "nscale", 96, size=4 * 96),
        raw(TensorProto.FLOAT, "unread", 1000, size=4000),
    ]
    nodes = [
        helper.make_node("Cast", ["f8"], ["a"], to=1),
        *(helper.make_node("DequantizeLinear", [t, "scale"], [f"{t}d"]) for t in ("i4", "i8")),
        helper.make_node("DequantizeLinear", ["i32", "scale"], ["i32d"]),
        helper.make_node("Gather", ["a", "index"], ["g"]),
        helper.make_node("MatMulNBits", ["x", "nbits", "nscale"], ["n"], domain=MICROSOFT,
                         K=64, N=48, bits=4, block_size=32),
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["k"], value_ints=[1, 2, 3]),
        helper.make_node("Constant", [], ["s"], sparse_value=helper.make_sparse_tensor(
            helper.make_tensor("v", 1, [3], [1.0, 2.0, 3.0]),
            helper.make_tensor("p", 7, [3], [0, 5, 9]), [20])),
    ]  # fmt: skip
    inner = helper.make_graph(
        [helper.make_node("Add", ["x", "own"], ["sum"])], "g", [], [floats("sum")],
        [numpy_helper.from_array(fm.float32(np.ones(64)), "own")],
    )  # fmt: skip
    nodes.append(helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner))
    proto = fm.build(nodes, {"x": [1, 64], "yes": None}, {"y": None}, {})
    proto.graph.initializer.extend(tensors)
    by_hand = 12 + 15 + 6 + 1 + 7 + 48 * 64 + 96 + 2 + 3 + 2 * 64
    assert model_cost(load(proto), {}).parameters == by_hand
