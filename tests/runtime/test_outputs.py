"""Outputs of every kind: what of them is compared, and what is said of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.engine.api import Result, plan
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.validate import validate
from onnx_lowrank.errors import DataError, GuardError, ModelError
from onnx_lowrank.judge.checks import OutputCheck
from onnx_lowrank.runtime.outputs import arrays_of, difference, finite_classes, scores_in
from tests import fixtures_models as fm

Infos = Sequence[onnx.ValueInfoProto]

# values


def test_values_of_every_type_become_arrays() -> None:
    one, two = np.ones((2, 3), np.float32), np.zeros((1, 3), np.float32)
    assert arrays_of(one) == [one] or arrays_of(one)[0] is one
    assert [a.shape for a in arrays_of([one, two])] == [(2, 3), (1, 3)]
    assert arrays_of(None) == []
    table, keys = arrays_of([{1: 0.5, 0: 0.25}, {0: 0.75, 1: 0.125}])
    assert table.tolist() == [[0.25, 0.5], [0.75, 0.125]]
    assert keys.tolist() == [[0, 1], [0, 1]]
    values, names = arrays_of({"b": 2.0, "a": 1.0})
    assert (values.tolist(), names.tolist()) == ([1.0, 2.0], ["a", "b"])
    assert len(arrays_of([{"a": 1.0}, {"b": 2.0}])) == 4
    assert scores_in(arrays_of([{0: 0.25, 1: 0.75}])) is not None
    assert scores_in([one, one]) is None


def test_differences_by_hand() -> None:
    inf, nan = math.inf, math.nan
    old = np.array([[1.0, 2.0, -inf, nan], [3.0, inf, 4.0, 0.0]])
    new = np.array([[1.0, 1.0, -inf, nan], [3.0, -inf, nan, 1.0]])
    found = difference(old, new, 2)
    assert found.signal.tolist() == [5.0, 9.0]
    assert found.noise.tolist() == [1.0, 1.0]
    assert found.lost.tolist() == [0.0, 16.0]
    assert found.places.tolist() == [2, 2]
    assert found.finite.tolist() == [2, 3]
    assert found.mismatches.tolist() == [0, 2]
    assert found.equal.tolist() == [False, False]
    assert difference(old[:1], old[:1].copy(), 1).equal.tolist() == [True]


@pytest.mark.parametrize(
    ("old", "new", "equal"),
    [
        (np.array([["a", "b"], ["c", "d"]], object), np.array([["a", "b"], ["c", "e"]], object),
         [True, False]),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), [True, True, False]),
        (np.array([True, False]), np.array([True, True]), [True, False]),
    ],
)  # fmt: skip
def test_equality_by_hand(old: Any, new: Any, equal: list[bool]) -> None:
    assert difference(old, new, len(old)).equal.tolist() == equal


def test_complex_numbers_and_halves() -> None:
    found = difference(np.array([[1 + 2j]]), np.array([[1 + 1j]]), 1)
    assert (found.signal.tolist(), found.noise.tolist()) == ([5.0], [1.0])
    half = np.array([[0.5, 2.0]], np.float16)
    assert difference(half, half, 1).signal.tolist() == [4.25]


def test_the_largest_score_among_infinities() -> None:
    inf, nan = math.inf, math.nan
    scores = np.array([[-inf, -3.0, -1.0], [nan, -2.0, -inf], [-inf, -inf, nan], [0.0, 0.0, 0.0]])
    assert finite_classes(scores).tolist() == [2, 1, -1, 0]


# models

WIDTH = 32
RNG = np.random.default_rng(3)
X = fm.float32(RNG.standard_normal((120, WIDTH)))


def falling(rows: int, columns: int, scale: float = 1.0) -> fm.AnyArray:
    """A matrix whose singular values fall by a fifth each."""
    random = np.random.default_rng(rows * 100 + columns)
    u, s, v = np.linalg.svd(random.standard_normal((rows, columns)), full_matrices=False)
    return fm.float32(scale * (u * 0.8 ** np.arange(len(s))) @ v)


def info(name: str, element: int = TensorProto.FLOAT, dims: Any = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, dims)


def net(
    tail: Sequence[NodeProto],
    outputs: Infos,
    weights: Mapping[str, fm.AnyArray] | None = None,
    batch: int | str = "N",
    domains: Sequence[str] = (),
) -> ModelProto:
    """Two layers from ``x`` to ``h``, and more nodes behind them."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h1"], name="fc1"),
        helper.make_node("Relu", ["h1"], ["a1"]),
        helper.make_node("Gemm", ["a1", "w2"], ["h"], name="fc2"),
        *tail,
    ]
    values = {"w1": falling(WIDTH, WIDTH, 3.0), "w2": falling(WIDTH, 16, 3.0), **(weights or {})}
    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()]
    graph = helper.make_graph(nodes, "g", [info("x", dims=[batch, WIDTH])], list(outputs), tensors)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(d, 2) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def node(op: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def compressed(model: ModelProto, **options: Any) -> Result:
    return fm.quick_compress(
        model, **{"calib": {"x": X}, "target": "macs=0.6", "min_kept": 0.01, **options}
    )


def by_name(result: Result) -> dict[str, OutputCheck]:
    return {o.name: o for o in result.report.validation.outputs}


def boxes_net() -> ModelProto:
    tail = [
        node("Reshape", ["h", "four"], "boxes"),
        node("Sigmoid", ["h1"], "s"),
        node("Slice", ["s", "zero", "four_", "one"], "s4"),
        node("Reshape", ["s4", "flat"], "scores"),
        node("NonMaxSuppression", ["boxes", "scores", "many", "half", "half"], "chosen"),
    ]
    weights = {
        "four": np.array([1, 4, 4]), "flat": np.array([1, 1, 4]), "zero": np.array([0]),
        "four_": np.array([4]), "one": np.array([1]), "many": np.array([4]),
        "half": np.array([0.5], np.float32),
    }  # fmt: skip
    return net(tail, [info("chosen", TensorProto.INT64)], weights, batch=1)


def test_what_boxes_are_chosen_from_is_compared() -> None:
    result = compressed(boxes_net(), effort="normal", force=True)
    found = by_name(result)
    assert list(found) == ["boxes", "scores"]
    assert 0 < found["boxes"].relative_error < 0.5
    (note,) = [n for n in result.report.said if "'chosen'" in n]
    assert "'boxes', 'scores'" in note
    # as computed by hand from the two models
    old, new = boxes_net(), result.model
    old.graph.output.append(info("boxes"))
    new.graph.output.append(info("boxes"))
    held = result.report.validation.samples
    assert held == 24
    pairs = [(fm.run(old, {"x": x})["boxes"], fm.run(new, {"x": x})["boxes"])
             for x in np.split(X, len(X))]  # fmt: skip
    errors = [fm.relative(b, a) for a, b in pairs]
    assert min(errors) < found["boxes"].relative_error < max(errors)


@pytest.mark.parametrize(
    ("tail", "names"),
    [
        ([node("Greater", ["h", "cut"], "g"), node("NonZero", ["g"], "y")], ["h"]),
        ([node("Greater", ["h", "cut"], "g"), node("Compress", ["h", "c"], "y", axis=1)], None),
        ([node("Unique", ["h"], "y")], ["h"]),
        ([node("ReduceMax", ["h"], "m", keepdims=1, axes=[0, 1]), node("Abs", ["m"], "ma"),
          node("Cast", ["ma"], "k0", to=TensorProto.INT64), node("Add", ["k0", "ones"], "k1"),
          node("Reshape", ["k1", "ones"], "k"), node("Min", ["k", "few"], "kk"),
          node("TopK", ["h", "kk"], "y", "i")], ["h", "ma"]),
    ],
    ids=["NonZero", "Compress by constants", "Unique", "TopK"],
)  # fmt: skip
def test_shapes_that_the_data_decide(tail: list[NodeProto], names: list[str] | None) -> None:
    element = TensorProto.INT64 if tail[-1].op_type == "NonZero" else TensorProto.FLOAT
    weights = {
        "cut": np.array(0.5, np.float32), "c": np.array([True, False] * 8),
        "ones": np.array([1]), "few": np.array([5]),
    }  # fmt: skip
    model = net(tail, [info("y", element)], weights)
    result = compressed(model, effort="normal", force=True)
    found = by_name(result)
    if names is None:  # a constant condition decides no shape
        assert list(found) == ["y"]
    else:
        assert set(names) <= set(found)
        assert "y" not in found
    assert result.report.validation.compared
    checks = validate(model, result.model, {"x": X}, threads=1)
    assert [o.name for o in checks.outputs] == list(found)
    assert plan(model, calib={"x": X}, target="macs=0.6", cache="", threads=1).decisions


def test_where_nothing_stands_before_the_data_decide() -> None:
    tail = [node("NonZero", ["x"], "y")]
    model = net(tail, [info("y", TensorProto.INT64), info("h", dims=["N", 16])])
    result = compressed(model, force=True)
    assert list(by_name(result)) == ["y", "h"]
    assert by_name(result)["y"].equal == 1.0


def test_infinite_outputs_are_compared_where_both_are_finite() -> None:
    tail = [node("Mul", ["h", "much"], "z"), node("Softmax", ["z"], "p", axis=1),
            node("Log", ["p"], "y")]  # fmt: skip
    model = net(tail, [info("y", dims=["N", 16])], {"much": np.array(40, np.float32)})
    for effort in ("quick", "thorough"):
        result = compressed(model, effort=effort, force=True)
        check = by_name(result)["y"]
        checks = validate(model, result.model, {"x": X}, threads=1)
        old, new = (fm.run(m, {"x": X})["y"].astype(float) for m in (model, result.model))
        both = np.isfinite(old) & np.isfinite(new)
        assert 0.05 < np.isinf(old).mean() < 0.95
        (found,) = checks.outputs
        assert found.places == both.sum()
        assert found.mismatches == np.sum(np.isinf(old) != np.isinf(new))
        wanted = np.linalg.norm(new[both] - old[both]) / np.linalg.norm(old[both])
        assert found.relative_error == pytest.approx(wanted, rel=1e-3)
        assert found.top1_agreement == np.mean(old.argmax(1) == new.argmax(1))
        assert math.isfinite(check.relative_error)
        assert all(math.isfinite(d.error) for d in result.plan.decisions)


@pytest.mark.parametrize("force", [False, True])
def test_outputs_that_are_nan_everywhere_are_not_exact(force: bool) -> None:
    tail = [node("Sub", ["h", "h"], "o"), node("Div", ["o", "o"], "y")]
    model = net(tail, [info("y", dims=["N", 16])])
    if not force:
        with pytest.raises(GuardError, match=r"no output could be compared.*'y'.*only NaN and Inf"):
            compressed(model)
        return
    result = compressed(model, force=True)
    check = by_name(result)["y"]
    assert check.places == 0
    assert math.isnan(check.snr_db)
    assert result.report.to_dict()["validation"]["outputs"][0]["snr_db"] is None
    with pytest.raises(DataError, match=r"hold only NaN and Inf"):
        compressed(model, target=None, min_snr=10.0, calib={"x": np.tile(X, (3, 1))})
    assert not compressed(model, effort="normal", force=True).report.validation.compared


def test_outputs_that_are_not_repeated_are_left_out() -> None:
    noise = node("RandomNormalLike", ["h"], "n")
    tail = [noise, node("Add", ["h", "n"], "y")]
    model = net(tail, [info("y", dims=["N", 16]), info("h", dims=["N", 16])])
    result = compressed(model)
    assert list(by_name(result)) == ["h"]
    assert any("different values of 'y' each time" in n for n in result.report.said)
    alone = net(tail, [info("y", dims=["N", 16])])
    with pytest.raises(
        GuardError, match=r"no output could be compared.*different values of 'y' each time"
    ):
        compressed(alone)
    assert compressed(alone, force=True).report.validation.outputs == ()
    dropped = net(
        [node("Dropout", ["h", "part", "yes"], "y")],
        [info("y", dims=["N", 16])],
        {"part": np.array(0.5, np.float32), "yes": np.array(True)},
    )
    with pytest.raises(GuardError, match="no output could be compared"):
        compressed(dropped, effort="normal")
    kept = net(
        [node("Dropout", ["h", "part", "yes"], "y")],
        [info("y", dims=["N", 16])],
        {"part": np.array(0.0, np.float32), "yes": np.array(True)},
    )
    assert list(by_name(compressed(kept))) == ["y"]


SEQUENCE = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
MAPS = helper.make_value_info(
    "y", helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(1, []))
    ),
)  # fmt: skip
OPTIONAL = helper.make_value_info(
    "y", helper.make_optional_type_proto(helper.make_tensor_type_proto(1, None))
)
ODD_NETS: dict[str, tuple[list[NodeProto], onnx.ValueInfoProto, list[str]]] = {
    "sequence output": ([node("SplitToSequence", ["h", "eight"], "y", axis=1)], SEQUENCE, []),
    "sequence inside": (
        [node("SplitToSequence", ["h", "eight"], "q", axis=1),
         node("SequenceAt", ["q", "one"], "b"), node("MatMul", ["b", "w3"], "y", name="fc3")],
        info("y", dims=["N", 8]), [],
    ),
    "maps": (
        [node("Softmax", ["h"], "p", axis=1),
         node("ZipMap", ["p"], "y", domain="ai.onnx.ml", classlabels_int64s=list(range(16)))],
        MAPS, ["ai.onnx.ml"],
    ),
    "optional output": ([node("Optional", ["h"], "y")], OPTIONAL, []),
    "optional inside": (
        [node("Optional", ["h"], "o"), node("OptionalGetElement", ["o"], "y")],
        info("y", dims=["N", 16]), [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_NETS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_values_that_are_no_tensors(kind: str, calibrated: bool) -> None:
    tail, output, domains = ODD_NETS[kind]
    weights = {"eight": np.int64(8), "one": np.int64(1), "w3": falling(8, 8)}
    model = net(tail, [output], weights, domains=domains)
    effort = "normal" if calibrated else "quick"
    result = compressed(model, calib={"x": X} if calibrated else None, effort=effort)
    (check,) = result.report.validation.outputs
    assert 0 < check.relative_error < 0.9
    (whole,) = validate(model, result.model, {"x": X}, threads=1).outputs
    old, new = ([np.concatenate([a.astype(float).reshape(-1) for a in arrays_of(fm.run(
        m, {"x": X})["y"])]) for m in (model, result.model)])  # fmt: skip
    if kind == "maps":
        assert whole.top1_agreement is not None
        size = 16 * len(X)
        old, new = old[:size], new[:size]
        assert whole.relative_error == pytest.approx(
            np.linalg.norm(new - old) / np.sqrt(np.sum(old**2) + len(X) * np.sum(np.arange(16)**2)),
            rel=1e-4,
        )  # fmt: skip
    else:
        assert whole.relative_error == pytest.approx(fm.relative(new, old), rel=1e-4)


def test_labels_as_texts_are_compared_by_equality() -> None:
    tail = [
        node("ArgMax", ["h"], "c", axis=1, keepdims=0),
        node("LabelEncoder", ["c"], "y", domain="ai.onnx.ml", keys_int64s=list(range(16)),
             values_strings=[f"class {i}" for i in range(16)]),
    ]  # fmt: skip
    outputs = [info("y", TensorProto.STRING, ["N"]), info("c", TensorProto.INT64, ["N"])]
    model = net(tail, outputs, domains=["ai.onnx.ml"])
    result = compressed(model)
    (text, number) = validate(model, result.model, {"x": X}, threads=1).outputs
    old, new = (fm.run(m, {"x": X})["c"] for m in (model, result.model))
    assert text.equal == number.equal == np.mean(old == new)
    assert math.isnan(text.snr_db)
    assert text.top1_agreement is None
    assert compressed(model, effort="normal", force=True).report.validation.compared


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_samples_fit_the_weights(value: float) -> None:
    """They say nothing of the responses; what is known of them is their mean."""
    model = net([], [info("h", dims=["N", 16])])
    constant = np.full_like(X, value)
    result = compressed(model, calib={"x": constant})
    assert any("says nothing of 2 of 2 layers (fc1, fc2)" in n for n in result.report.said)
    assert any("the same on all 24 samples" in n for n in result.report.said)
    plain = compressed(model, calib=None)
    ranks = [[d.rank for d in r.plan.decisions] for r in (result, plain)]
    assert ranks[0] == ranks[1]
    assert all(d.error > 1e-4 for d in result.plan.decisions if d.method)
    old, new, weights = (fm.run(m, {"x": X})["h"] for m in (model, result.model, plain.model))
    assert fm.relative(new, old) < 1.2 * fm.relative(weights, old) + 0.05
    old, new = (fm.run(m, {"x": constant[:1]})["h"] for m in (model, result.model))
    np.testing.assert_allclose(new, old, atol=1e-5)


def test_layers_that_read_infinities_fit_the_rest() -> None:
    """Log(Relu) in the middle: rows that are no numbers are left out of the moments."""
    tail = [node("Relu", ["h"], "a2"), node("Log", ["a2"], "l"), node("Exp", ["l"], "e"),
            node("MatMul", ["l", "w3"], "odd", name="fc3"),
            node("Clip", ["odd", "low", "high"], "o"),
            node("MatMul", ["e", "w3"], "even", name="fc4"),
            node("Add", ["even", "o"], "y")]  # fmt: skip
    weights = {"w3": np.abs(falling(16, 16)), "low": np.float32(-1), "high": np.float32(1)}
    model = net(tail, [info("y", dims=["N", 16])], weights)
    result = compressed(model, effort="thorough", force=True)
    assert result.report.validation.compared
    assert all(math.isfinite(d.error) for d in result.plan.decisions)


def test_empty_outputs_are_not_compared() -> None:
    tail = [node("Slice", ["h", "zero", "zero", "one"], "y")]
    weights = {"zero": np.array([0]), "one": np.array([1])}
    model = net(tail, [info("y", dims=["N", 0])], weights)
    with pytest.raises(GuardError, match=r"no output could be compared.*is empty"):
        compressed(model)
    both = net(tail, [info("y", dims=["N", 0]), info("h", dims=["N", 16])], weights)
    found = by_name(compressed(both))
    assert (found["y"].places, found["h"].places) == (0, 24 * 16)


def test_outputs_that_are_inputs_or_weights() -> None:
    model = net([node("Identity", ["x"], "same")], [
        info("h", dims=["N", 16]), info("same", dims=["N", WIDTH]), info("w2", dims=[WIDTH, 16]),
    ])  # fmt: skip
    found = by_name(compressed(model, force=True))
    assert found["same"].snr_db == math.inf
    assert set(found) == {"h", "same", "w2"}


@pytest.mark.parametrize(
    "element",
    [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.DOUBLE],
)
def test_outputs_of_other_float_types(element: int) -> None:
    model = net([node("Cast", ["h"], "y", to=element)], [info("y", element, ["N", 16])])
    model.opset_import[0].version = 19
    result = compressed(model, judge="y=kl")
    check = by_name(result)["y"]
    wide = net([], [info("h", dims=["N", 16])])
    wide.opset_import[0].version = 19
    wanted = by_name(compressed(wide))["h"]
    assert check.relative_error == pytest.approx(wanted.relative_error, abs=0.05)
    assert 0 < check.relative_error < 0.5
    assert check.top1_agreement is not None


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_inputs_of_other_float_types(element: int) -> None:
    model = net([], [info("h", dims=["N", 16])])
    model.graph.node.insert(0, node("Cast", ["z"], "x", to=TensorProto.FLOAT))
    model.graph.input[0].CopyFrom(info("z", element, ["N", WIDTH]))
    model.opset_import[0].version = 19
    check = by_name(compressed(model, calib={"z": X}))["h"]
    assert 0 < check.relative_error < 0.5


def texts_net() -> ModelProto:
    """The sum of embedded words, then two layers."""
    nodes = [
        node("LabelEncoder", ["words"], "ids", domain="ai.onnx.ml", default_int64=0,
             keys_strings=[f"w{i}" for i in range(20)], values_int64s=list(range(20))),
        node("Gather", ["table", "ids"], "e"),
        node("ReduceMean", ["e"], "x", axes=[1], keepdims=0),
    ]  # fmt: skip
    table = fm.float32(np.random.default_rng(4).standard_normal((20, WIDTH)))
    model = net([], [info("h", dims=["N", 16])], {"table": table}, domains=["ai.onnx.ml"])
    for one in reversed(nodes):
        model.graph.node.insert(0, one)
    model.graph.input[0].CopyFrom(info("words", TensorProto.STRING, ["N", 3]))
    return model


@pytest.mark.parametrize("kind", ["unicode", "bytes", "objects", "lists"])
def test_texts_are_fed(kind: str, tmp_path: Path) -> None:
    chosen = np.random.default_rng(5).integers(0, 20, (120, 3))
    words = np.array([f"w{i}" for i in range(20)])[chosen]
    data: Any = {
        "unicode": words, "bytes": words.astype("S"), "objects": words.astype(object),
        "lists": words.tolist(),
    }[kind]  # fmt: skip
    model = texts_net()
    result = compressed(model, calib={"words": data}, effort="normal")
    assert result.plan.data == compressed(model, calib={"words": words}).plan.data
    old, new = (fm.run(m, {"words": words.astype(object)})["h"] for m in (model, result.model))
    assert 0 < fm.relative(new, old) < 0.5
    if kind in ("unicode", "bytes"):
        np.savez(tmp_path / "words.npz", words=data)
        again = compressed(model, calib=tmp_path / "words.npz")
        assert again.plan.data == result.plan.data
    with pytest.raises(DataError, match="'words' expects strings, found int64"):
        compressed(model, calib={"words": chosen})


def test_texts_are_made_up_and_read_from_protobufs(tmp_path: Path) -> None:
    model = texts_net()
    assert compressed(model, calib=None, input_shapes={"words": (1, 3)}).report.validation.compared
    for i in range(30):
        folder = tmp_path / f"test_data_set_{i}"
        folder.mkdir()
        words = np.array([[f"w{i % 20}", f"w{3 * i % 20}", "w1"]], dtype=object)
        (folder / "input_0.pb").write_bytes(numpy_helper.from_array(words).SerializeToString())
    assert compressed(model, calib=tmp_path).report.validation.samples == 6


def test_inputs_that_are_no_tensors_are_refused_by_name() -> None:
    model = net([], [info("h", dims=["N", 16])])
    model.graph.node.insert(0, node("SequenceAt", ["many", "zero"], "x"))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "zero"))
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("many", 1, None))
    with pytest.raises(ModelError, match="'many' is of the type sequence, and only tensors"):
        compressed(model, calib={"many": X})
    assert [layer.name for layer in inspect(model).layers] == ["fc1", "fc2"]


def test_layers_behind_shapes_that_the_data_decide() -> None:
    """What is chosen by scores is read by another layer: rows of both models are others."""
    tail = [
        node("ReduceMax", ["h"], "s", axes=[1], keepdims=0),
        node("Greater", ["s", "cut"], "g"),
        node("Compress", ["h", "g"], "chosen", axis=0),
        node("Gemm", ["chosen", "w3", "b3"], "y", name="fc3"),
    ]  # fmt: skip
    weights = {"w3": falling(16, 16), "b3": np.ones(16, np.float32), "cut": np.float32(1.5)}
    model = net(tail, [info("y", dims=None)], weights)
    result = compressed(model, passes="svd", effort="normal", force=True)
    assert {d.layer for d in result.plan.decisions if d.method} >= {"fc1"}
    assert set(by_name(result)) == {"h", "s"}
    assert 0 < by_name(result)["h"].relative_error < 0.5
