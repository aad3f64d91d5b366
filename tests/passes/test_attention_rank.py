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

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.graph.graph import Graph
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_attention import FORMS, Form, attention
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
    lost = [difference(cut(analysed(form, proto), w), proto, form) for w in (7, 4, 2)]
    assert 1e-4 < lost[0] < lost[1] < lost[2] < 1


@pytest.mark.parametrize("name", [n for n, f in FORMS.items() if not f.fused])
def test_recovers_heads_that_are_narrow(name: str) -> None:
    form = FORMS[name]
    # queries are wide: only their products with the keys count
    proto = narrow(attention(form), form, 4, "kv")
    assert difference(cut(analysed(form, proto), 4), proto, form) < 5e-3
    assert difference(cut(analysed(form, proto), 2), proto, form) > 5e-2


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
def test_keeps_budgets_alone_and_with_other_passes(passes: str, target: str) -> None:
    form = Form(heads=4, width=16, inputs=32, length=12, mask="nan")
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


def test_the_same_input_gives_the_same_bytes_and_a_plan_that_can_be_applied() -> None:
    form = Form(heads=4, width=16, inputs=32, length=12)
    options: dict[str, Any] = {
        "calib": data(form), "passes": "attention_rank", "target": "macs=0.8", "force": True,
    }  # fmt: skip
    first, second = (fm.quick_compress(attention(form), **options) for _ in range(2))
    assert first.model.SerializeToString() == second.model.SerializeToString()


def test_blocks_that_cannot_be_narrowed_are_in_the_plan_with_a_reason() -> None:
    form = Form(biased=False)
    proto = attention(form)
    weights = {n.output[0]: n for n in proto.graph.node if n.op_type == "MatMul"}
    weights["k"].input[1] = weights["q"].input[1]
    decisions = analysed(form, proto).pruner("macs").decisions({})
    said = {g.name: g.reason for g in decisions if g.decision == "frozen"}
    assert said["n_softmax (queries and keys)"] == "n_q shares its weight with other layers"
