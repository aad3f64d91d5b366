"""Narrower heads: the identity at full width, exact where heads are narrow, in one plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.api import apply
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.planning.plan import Plan
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_attention import FORMS, ROTARY, Form, attention
from tests.support import rng

AnyArray = npt.NDArray[Any]


def data(form: Form, count: int = 200, seed: int = 0) -> dict[str, AnyArray]:
    shape = (count, form.length, form.inputs)
    mixing = rng(seed, 3).normal(size=(form.inputs, form.inputs))
    names = ["x", *(["other"] if form.crossed else [])]
    return {
        n: fm.float32(rng(seed, i).normal(size=shape) @ mixing / 4) for i, n in enumerate(names)
    }


def analysed(form: Form, proto: ModelProto) -> Analysis:
    return analysis_of(proto, "attention_rank", data(form))


def cut(analysis: Analysis, width: int | None) -> ModelProto:
    """The model with heads of so many channels (None: all), their weights not solved again."""
    pruner = analysis.pruner("macs")
    inside = {n: p.size for n, p in pruner.prunables.items() if p.pairs}
    kept = {n: np.arange(min(width or size, size)) for n, size in inside.items()}
    assert kept
    graph = Graph(analysis.prepared.model)
    pruner.cuts.apply(graph, kept)
    model = graph.to_model().proto
    onnx.checker.check_model(model, full_check=True)
    return model


def difference(new: ModelProto, old: ModelProto, form: Form) -> float:
    feed = data(form, 20, seed=1)
    return fm.relative(fm.run(new, feed)["y"], fm.run(old, feed)["y"])


def changed(proto: ModelProto, **new: AnyArray) -> ModelProto:
    """The same with other weights, by the start of their names."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for tensor in made.graph.initializer:
        for stem, values in new.items():
            if tensor.name.rsplit("_", 1)[0] == stem:
                tensor.CopyFrom(numpy_helper.from_array(fm.float32(values), tensor.name))
    return made


def weight(proto: ModelProto, stem: str) -> AnyArray:
    return next(
        numpy_helper.to_array(t)
        for t in proto.graph.initializer
        if t.name.rsplit("_", 1)[0] == stem
    )


def narrow(proto: ModelProto, form: Form, left: int, sides: str = "qkv") -> ModelProto:
    """The same with heads whose queries, keys or values lie in a space of ``left`` dimensions."""
    new = {}
    for number, side in enumerate(sides):
        projections = []
        for head in range(form.keys if form.keys and side != "q" else form.heads):
            # heads that share keys see the same space
            width = form.value_width if side == "v" else form.width
            space = rng(number, head).normal(size=(width, left))
            projections.append(np.linalg.qr(space)[0] @ np.linalg.qr(space)[0].T)
        blocks = weight(proto, side).reshape(form.inputs, -1, width)
        new[side] = np.einsum("ihd,hde->ihe", blocks, np.stack(projections)).reshape(
            form.inputs, -1
        )
        if form.biased:
            biases = weight(proto, f"{side}_bias").reshape(-1, width)
            new[f"{side}_bias"] = np.einsum("hd,hde->he", biases, np.stack(projections)).ravel()
    return changed(proto, **new)


@pytest.mark.parametrize("name", FORMS)
def test_is_the_identity_at_full_width(name: str) -> None:
    form = FORMS[name]
    proto = attention(form)
    assert difference(cut(analysed(form, proto), None), proto, form) < 2e-5


@pytest.mark.parametrize("name", FORMS)
def test_heads_are_narrower_in_every_form(name: str) -> None:
    form = FORMS[name]
    proto = attention(form)
    analysis = analysed(form, proto)
    lost = [difference(cut(analysis, w), proto, form) for w in (7, 4, 2)]
    assert 1e-4 < lost[0] < lost[1] < lost[2] < 1


@pytest.mark.parametrize("name", [n for n, f in FORMS.items() if not f.fused])
def test_recovers_heads_that_are_narrow(name: str) -> None:
    form = FORMS[name]
    # queries are wide: only their products with the keys count
    proto = narrow(attention(form), form, 4, "kv")
    assert difference(cut(analysed(form, proto), 4), proto, form) < 5e-3
    assert difference(cut(analysed(form, proto), 2), proto, form) > 5e-2


@pytest.mark.parametrize("name", ROTARY)
def test_values_are_narrower_under_a_rotary_embedding(name: str) -> None:
    form = ROTARY[name]
    proto = attention(form)
    assert difference(cut(analysed(form, proto), None), proto, form) < 2e-5
    if not form.fused:
        proto = narrow(proto, form, 4, "v")
        new = cut(analysed(form, proto), 4)
        assert difference(new, proto, form) < 5e-3
        assert weight(new, "q").shape == weight(proto, "q").shape
        assert weight(new, "v").shape[1] == weight(proto, "v").shape[1] // 2


def test_what_is_the_same_for_all_keys_costs_nothing() -> None:
    form = Form()
    proto = narrow(attention(form), form, 3, "kv")
    shifted = changed(proto, k_bias=100 * rng(5).normal(size=24))
    assert difference(shifted, proto, form) < 1e-2  # float32
    assert difference(cut(analysed(form, shifted), 4), proto, form) < 1e-2


def test_a_head_that_nobody_reads_changes_nothing() -> None:
    form = Form()
    proto = narrow(attention(form), form, 4, "kv")
    read = weight(proto, "o").reshape(form.heads, form.width, form.inputs).copy()
    read[1] = 0
    full = weight(attention(form), "k").reshape(form.inputs, form.heads, form.width)
    keys = weight(proto, "k").reshape(form.inputs, form.heads, form.width).copy()
    keys[:, 1] = full[:, 1]  # as wide as can be
    proto = changed(proto, o=read.reshape(-1, form.inputs), k=keys.reshape(form.inputs, -1))
    assert difference(cut(analysed(form, proto), 4), proto, form) < 5e-3


def one_node(**changes: Any) -> Form:
    """The same layers in front of one Attention node, or of the nodes that it stands for."""
    return Form(**{"heads": 4, "keys": 2, "biased": True, "opset": 23, "scale": "after", **changes})


@pytest.mark.parametrize("mask", ["", "add"])
def test_one_node_is_narrowed_as_the_nodes_that_it_stands_for(mask: str) -> None:
    forms = [one_node(mask=mask, node=node) for node in ("", "apart", "folded")]
    protos = [attention(form) for form in forms]
    stems = [f"{side}{end}" for side in "qkvo" for end in ("", "_bias")]
    protos[1:] = [changed(p, **{s: weight(protos[0], s) for s in stems}) for p in protos[1:]]
    cuts = [cut(analysed(f, p), 4) for f, p in zip(forms, protos, strict=True)]
    for form, proto, new in zip(forms[1:], protos[1:], cuts[1:], strict=True):
        assert difference(proto, protos[0], form) < 1e-5
        assert difference(new, cuts[0], form) < 1e-4
        assert difference(new, proto, form) > 1e-2


@pytest.mark.parametrize("node", ["apart", "folded"])
def test_one_node_keeps_its_scale_and_runs_alike_by_the_reference(node: str) -> None:
    form = one_node(node=node, mask="where", softcap=3.0, opset=24)
    new = cut(analysed(form, attention(form)), 4)
    (whole,) = [n for n in new.graph.node if n.op_type == "Attention"]
    (scale,) = [a.f for a in whole.attribute if a.name == "scale"]
    assert scale == pytest.approx(form.width**-0.5, rel=1e-7)
    feed = data(form, 3)
    (expected,) = ReferenceEvaluator(new).run(None, feed)
    assert fm.relative(fm.run(new, feed)["y"], expected) < 1e-5


@pytest.mark.parametrize("side", ["q and k", "v"])
def test_one_node_may_have_one_pair_narrowed_alone(side: str) -> None:
    form = one_node(node="folded")
    analysis = analysed(form, attention(form))
    pruner = analysis.pruner("macs")
    reads = side == "v"
    kept = {
        n: np.arange(4)
        for n, p in pruner.prunables.items()
        if p.pairs and p.pairs[0].reads == reads
    }
    assert len(kept) == 1
    graph = Graph(analysis.prepared.model)
    pruner.cuts.apply(graph, kept)
    (whole,) = [n for n in graph.nodes if n.op == "Attention"]
    assert ("scale" in whole.attrs) == (not reads)
    found = graph.to_model().proto
    assert 1e-4 < difference(found, attention(form), form) < 1
    # its product is a half of the node's work, and both lose half of it
    macs = [analysis.pruner("macs").found.products[i].macs for i in (0, 1)]
    assert macs == [form.heads * form.length**2 * form.width] * 2


def with_cache(form: Form, given: bool) -> ModelProto:
    """The same whose node gives its keys and values to the next call, and may take some."""
    proto = attention(form)
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    names = ["present_k", "present_v"]
    whole.output.extend(names)
    shape = ["batch", form.keys or form.heads, None, form.width]
    for name in names:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    if given:
        whole.input.extend(["", "past_k", "past_v"])
        for name in ("past_k", "past_v"):
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    return proto


@pytest.mark.parametrize("given", [False, True])
def test_one_node_with_a_cache_keeps_its_widths(given: bool) -> None:
    form = one_node(node="folded")
    proto = with_cache(form, given)
    feed = data(form, 20)
    if given:
        past = (20, 2, 3, form.width)
        feed |= {n: fm.float32(rng(4).normal(size=past)) for n in ("past_k", "past_v")}
    pruner = analysis_of(proto, "attention_rank", feed).pruner("macs")
    assert not pruner.prunables
    (block,) = pruner.found.blocks
    assert block.refused == {
        "n_mixed (queries and keys)": "Attention n_mixed keeps a cache of its keys",
        "n_mixed (values)": "Attention n_mixed keeps a cache of its values",
    }


def test_one_node_with_a_cache_that_nothing_reads_is_narrowed() -> None:
    form = one_node(node="folded")
    proto = with_cache(form, given=False)
    shapes = [proto.graph.output.pop() for _ in range(2)]
    proto.graph.value_info.extend(shapes)
    new = cut(analysed(form, proto), 4)
    assert 1e-3 < difference(new, proto, form) < 1


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_one_node_whose_scores_are_read(mode: int) -> None:
    form = one_node(node="apart", softcap=2.0)
    proto = attention(form)
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    whole.attribute.append(onnx.helper.make_attribute("qk_matmul_output_mode", mode))
    whole.output.extend(["", "", "scores"])
    shape = ["batch", form.heads, form.length, form.length]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("scores", 1, shape))
    analysis = analysed(form, proto)
    (block,) = analysis.pruner("macs").found.blocks
    said = "the scores of Attention n_mixed are read in front of its softmax too"
    assert block.refused == ({} if mode == 3 else {"n_mixed (queries and keys)": said})
    new, feed = cut(analysis, 4), data(form, 20, seed=1)
    lost = fm.relative(fm.run(new, feed)["scores"], fm.run(proto, feed)["scores"])
    assert (lost > 1e-3) == (mode == 3)


def test_one_node_that_counts_its_keys() -> None:
    form = one_node(node="folded", opset=24)
    proto = narrow(attention(form), form, 4, "kv")
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    whole.input.extend(["", "", "", "counted"])
    counted = onnx.helper.make_tensor_value_info("counted", onnx.TensorProto.INT64, ["batch"])
    proto.graph.input.append(counted)
    feed = data(form, 60) | {"counted": rng(1).integers(1, form.length + 1, size=60)}
    new = cut(analysis_of(proto, "attention_rank", feed), 4)
    assert fm.relative(fm.run(new, feed)["y"], fm.run(proto, feed)["y"]) < 5e-3


@pytest.mark.full
@given(
    heads=st.sampled_from([1, 2, 4]),
    shared=st.sampled_from([1, 2, 4]),
    width=st.integers(2, 9),
    values=st.integers(2, 9),
    length=st.integers(1, 7),
    mask=st.sampled_from(["", "add", "where"]),
    node=st.sampled_from(["folded", "apart"]),
    scale=st.sampled_from(["", "stated"]),
    softcap=st.sampled_from([0.0, 1.5]),
    causal=st.booleans(),
    opset=st.sampled_from([23, 24]),
)
@settings(max_examples=25)
def test_any_heads_in_one_node(
    heads: int, shared: int, width: int, values: int, softcap: float, **how: Any
) -> None:
    kept = max(heads // shared, 1)
    form = Form(
        heads=heads, keys=kept, width=width, values=values, softcap=softcap, **how,
    )  # fmt: skip
    proto = attention(form)
    analysis = analysed(form, proto)
    assert difference(cut(analysis, None), proto, form) < 1e-4
    assert np.isfinite(difference(cut(analysis, min(width, values) - 1), proto, form))


@pytest.mark.full
@given(
    heads=st.sampled_from([1, 2, 4]),
    width=st.integers(2, 9),
    length=st.integers(1, 7),
    mask=st.sampled_from(["", "add", "where", "nan"]),
    scale=st.sampled_from(["before", "after", "both", "shape"]),
    target=st.sampled_from(["constant", "computed", "copied"]),
    shared=st.booleans(),
)
@settings(max_examples=25)
def test_any_heads(
    heads: int, width: int, length: int, mask: str, scale: str, target: str, shared: bool
) -> None:
    form = Form(
        heads=heads, width=width, length=length, mask=mask, scale=scale, target=target,
        keys=1 if shared and heads > 1 else 0,
    )  # fmt: skip
    proto = attention(form)
    analysis = analysed(form, proto)
    assert difference(cut(analysis, width), proto, form) < 1e-4
    assert np.isfinite(difference(cut(analysis, width - 1), proto, form))


@pytest.mark.parametrize("passes", ["attention_rank", "attention_rank,prune_channels,svd"])
@pytest.mark.parametrize("target", ["macs=0.7", "params=0.7"])
@pytest.mark.parametrize("form", [
    Form(heads=4, width=16, inputs=32, length=12, mask="nan"),
    pytest.param(
        Form(heads=4, width=16, inputs=32, length=12, mask="add", opset=23, node="folded"),
        marks=pytest.mark.full,
    ),
])  # fmt: skip
def test_keeps_budgets_alone_and_with_other_passes(passes: str, target: str, form: Form) -> None:
    proto = narrow(attention(form), form, 8, "kv")
    found = fm.quick_compress(
        proto, calib=data(form), passes=passes, target=target, force=True
    )  # fmt: skip
    metric = target.partition("=")[0]
    assert found.report.after.of(metric) <= 0.7 * found.report.before.of(metric)
    assert difference(found.model, proto, form) < 0.2
    cuts = [g for g in found.plan.groups if g.decision == "cut"]
    assert cuts
    assert any("of each head" in g.reason for g in cuts)


@pytest.mark.parametrize("node", ["", pytest.param("folded", marks=pytest.mark.full)])
def test_layers_that_are_solved_again_keep_the_bases_of_narrow_heads(node: str) -> None:
    # so wide an input that what queries should be is cheaper to read than to compute
    form = Form(heads=4, width=16, inputs=128, length=24, mask="add", opset=23, node=node)
    proto = narrow(attention(form), form, 8, "kv")
    made = fm.quick_compress(
        proto, calib=data(form, 150), passes="attention_rank", target="macs=0.6", force=True
    )  # fmt: skip
    assert {len(g.kept) for g in made.plan.groups if g.decision == "cut"} == {8}
    assert {r.layer for r in made.report.refits} == {"n_q", "n_k", "n_v", "n_o"}
    assert difference(made.model, proto, form) < 1e-3


@pytest.mark.parametrize(("node", "passes"), [
    ("", "attention_rank"),
    pytest.param("folded", "attention_rank", marks=pytest.mark.full),
    pytest.param("", "prune_channels{heads=true}", marks=pytest.mark.full),
    pytest.param("folded", "prune_channels{heads=true}", marks=pytest.mark.full),
])  # fmt: skip
def test_the_same_input_gives_the_same_bytes_and_a_plan_that_can_be_applied(
    node: str, passes: str
) -> None:
    form = Form(heads=4, width=16, inputs=32, length=12, opset=23, node=node)
    options: dict[str, Any] = {
        "calib": data(form), "passes": passes, "target": "macs=0.8", "force": True,
    }  # fmt: skip
    first, second = (fm.quick_compress(attention(form), **options) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert [g.decision for g in first.plan.groups].count("cut") > 0
    again = Plan.from_json(first.plan.to_json())
    third = apply(attention(form), again, calib=data(form), threads=1, force=True, cache="")
    assert first.model.SerializeToString() == third.model.SerializeToString()


def test_blocks_that_cannot_be_narrowed_are_in_the_plan_with_a_reason() -> None:
    form = Form(biased=False)
    proto = attention(form)
    weights = {n.output[0]: n for n in proto.graph.node if n.op_type == "MatMul"}
    weights["k"].input[1] = weights["q"].input[1]
    decisions = analysed(form, proto).pruner("macs").decisions({})
    said = {g.name: g.reason for g in decisions if g.decision == "frozen"}
    assert said["n_softmax (queries and keys)"] == "n_q shares its weight with other layers"


@pytest.mark.parametrize("side", ["q", "k", "v"])
def test_channels_that_another_layer_reads_too_keep_their_basis(side: str) -> None:
    form = Form(biased=False)
    proto = attention(form)
    other = numpy_helper.from_array(fm.float32(rng(8).normal(size=(24, 5))), "w_other")
    proto.graph.initializer.append(other)
    proto.graph.node.append(onnx.helper.make_node("MatMul", [side, "w_other"], ["z"], "other"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["batch", 6, 5]))
    analysis = analysed(form, proto)
    new = cut(analysis, 4)
    feed = data(form, 20, seed=1)
    assert fm.relative(fm.run(new, feed)["z"], fm.run(proto, feed)["z"]) < 1e-6
    assert len([p for p in analysis.pruner("macs").prunables.values() if p.pairs]) == 1


@pytest.mark.parametrize("node", ["", "folded"])
@pytest.mark.parametrize(("first", "second"), [("q", "k"), ("k", "v"), ("q", "v")])
def test_channels_that_meet_twice_keep_their_basis(node: str, first: str, second: str) -> None:
    form = Form(biased=False, node=node, opset=23)
    proto = attention(form)
    for reader in proto.graph.node:  # what reads the one reads the other too
        reader.input[:] = [first if name == second else name for name in reader.input]
    pruner = analysed(form, proto).pruner("macs")
    reasons = [r for b in pruner.found.blocks for r in b.refused.values()]
    assert f"channels of n_{first} are multiplied in several places" in reasons
    for prunable in pruner.prunables.values():
        assert first not in {p.layer.removeprefix("n_") for pair in prunable.pairs
                             for p in (pair.first, pair.second)}  # fmt: skip


def test_a_node_that_onnx_runtime_has_fused_is_counted_and_named_in_the_plan() -> None:
    form = Form(heads=4, width=8, opset=23, node="folded")
    proto = attention(form)
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    whole.CopyFrom(onnx.helper.make_node(
        "MultiHeadAttention", whole.input, whole.output, "fused", domain="com.microsoft",
        num_heads=form.heads,
    ))  # fmt: skip
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    made = fm.quick_compress(
        proto, calib=data(form), passes="attention_rank,svd", target="macs=0.9", force=True
    )  # fmt: skip
    (said,) = [d for d in made.plan.decisions if d.layer == "fused"]
    assert said.decision == "skip"
    assert "fused by ONNX Runtime; give the model as it was before" in said.reason
    assert said.macs_before == 2 * form.heads * form.length**2 * form.width
