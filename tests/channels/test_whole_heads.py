"""Whole heads of attention as channels of a group: what is left is what zeros would leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.errors import OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.pruning.costs import Costs
from onnx_lowrank.pruning.prunable import Prunable
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.fixtures_attention import FORMS, ROTARY, Form, attention
from tests.support import rng

PASS = "prune_channels{heads=true,gather=false,solve=false}"
EVERY = {**FORMS, **{f"rotary_{name}": form for name, form in ROTARY.items()}}
SEVERAL = [name for name, form in EVERY.items() if form.keys != 1]


def data(form: Form, count: int = 40, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    names = ["x", *(["other"] if form.crossed else [])]
    shape = (count, form.length, form.inputs)
    return {n: fm.float32(rng(seed, i).normal(size=shape)) for i, n in enumerate(names)}


def analysed(form: Form, proto: ModelProto) -> Analysis:
    return analysis_of(proto, PASS, data(form))


def heads_of(analysis: Analysis) -> list[Prunable]:
    prunables = analysis.pruner("macs").prunables.values()
    return [p for p in prunables if p.group is not None and p.group.products]


def cut(analysis: Analysis, kept: list[int]) -> ModelProto:
    """The model with some heads, those that share keys counting as one."""
    (prunable,) = heads_of(analysis)
    graph = Graph(analysis.prepared.model)
    analysis.pruner("macs").cuts.apply(graph, {prunable.name: np.array(kept)})
    model = graph.to_model().proto
    onnx.checker.check_model(model, full_check=True)
    return model


def silenced(proto: ModelProto, form: Form, kept: list[int]) -> ModelProto:
    """The same with zeros where the last layer reads the other heads."""
    new = ModelProto()
    new.CopyFrom(proto)
    count = form.keys or form.heads
    for tensor in new.graph.initializer:
        if tensor.name.rsplit("_", 1)[0] == "o":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            heads = weight.reshape(count, -1, form.inputs)
            heads[[h for h in range(count) if h not in kept]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    return new


def difference(new: ModelProto, old: ModelProto, form: Form) -> float:
    feed = data(form, 5, seed=1)
    return fm.relative(fm.run(new, feed)["y"], fm.run(old, feed)["y"])


@pytest.mark.parametrize("name", SEVERAL)
def test_a_head_less_is_as_if_nobody_read_it(name: str) -> None:
    form = EVERY[name]
    proto = attention(form)
    analysis = analysed(form, proto)
    (prunable,) = heads_of(analysis)
    count = form.keys or form.heads
    assert prunable.size == count
    for gone in (0, count - 1):
        kept = [h for h in range(count) if h != gone]
        new = cut(analysis, kept)
        assert difference(new, silenced(proto, form, kept), form) < 1e-6
        assert difference(new, proto, form) > 1e-2


@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_heads_whose_queries_are_normalised_may_go(op: str) -> None:
    form = Form(heads=4, opset=23, node="apart")
    proto = attention(form)
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    scale = fm.float32(rng(6).uniform(0.5, 2, size=form.width))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, "scale"))
    normal = onnx.helper.make_node(op, [whole.input[0], "scale"], ["normal"])
    proto.graph.node.insert(list(proto.graph.node).index(whole), normal)
    whole.input[0] = "normal"
    new = cut(analysed(form, proto), [1, 3])
    assert difference(new, silenced(proto, form, [1, 3]), form) < 1e-6
    assert difference(new, proto, form) > 1e-2


@pytest.mark.parametrize("name", [n for n in FORMS if n not in SEVERAL])
def test_heads_that_share_all_keys_stay(name: str) -> None:
    analysis = analysed(FORMS[name], attention(FORMS[name]))
    assert not heads_of(analysis)
    assert "all channels are tied in q" in analysis.pruner("macs").found.refused.values()


@pytest.mark.full
@given(
    kept=st.integers(2, 4),
    shared=st.integers(1, 3),
    width=st.integers(1, 3),
    length=st.integers(1, 5),
    mask=st.sampled_from(["", "add", "where"]),
    node=st.sampled_from(["", "folded", "apart"]),
    target=st.sampled_from(["constant", "computed", "copied"]),
    rotary=st.sampled_from(["", "nodes", "node"]),
    pick=st.sets(st.integers(0, 3), min_size=1),
)
@settings(max_examples=40)
def test_any_heads(
    kept: int, shared: int, width: int, rotary: str, node: str, pick: set[int], **how: Any
) -> None:
    left = sorted(h for h in pick if h < kept)
    if node == "folded" and rotary == "nodes":
        rotary = "node"
    form = Form(
        heads=kept * shared, keys=kept if shared > 1 else 0, width=2 * width, node=node,
        rotary=rotary, opset=23, **how,
    )  # fmt: skip
    proto = attention(form)
    analysis = analysed(form, proto)
    if left:
        new = cut(analysis, left)
        assert difference(new, silenced(proto, form, left), form) < 1e-5


@pytest.mark.parametrize("form", [Form(heads=4), Form(heads=4, opset=23, node="folded")])
@pytest.mark.parametrize("passes", ["prune_channels{heads=true}", "prune_channels{heads=true},svd"])
def test_a_head_that_nobody_reads_goes_first(form: Form, passes: str) -> None:
    proto = silenced(attention(form), form, [0, 1, 3])
    found = fm.quick_compress(
        proto, calib=data(form, 200), passes=passes, target="macs=0.8", force=True
    )  # fmt: skip
    assert found.report.after.macs <= 0.8 * found.report.before.macs
    (group,) = [g for g in found.plan.groups if g.decision == "cut"]
    assert group.kept == (0, 1, 3)
    assert group.reason == "3 of 4 heads are left"
    assert difference(found.model, proto, form) < 1e-4


def test_heads_whose_widths_runtimes_like_go_one_by_one() -> None:
    form = Form(heads=4, width=8)
    analysis = analysed(form, attention(form))
    pruner = analysis.pruner("macs")
    losses = {name: np.zeros(p.size + 1) for name, p in pruner.prunables.items()}
    first = next(Costs(analysis.prepared, pruner.found, "macs", solve=True).grids(losses))
    (counts,) = [r.counts.tolist() for r in first if r.name == "n_q"]
    assert counts == [4, 3, 2, 1]


def test_heads_of_a_cache_stay() -> None:
    form = Form(heads=4, opset=23, node="folded")
    proto = attention(form)
    (whole,) = [n for n in proto.graph.node if n.op_type == "Attention"]
    whole.output.extend(["present_k", "present_v"])
    shape = ["batch", form.heads, form.length, form.width]
    for name in whole.output[1:]:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, shape))
    analysis = analysed(form, proto)
    assert not heads_of(analysis)
    said = "Attention n_mixed keeps a cache of its keys"
    assert said in analysis.pruner("macs").found.refused.values()


def test_heads_of_shares_that_are_an_output_stay() -> None:
    form = Form(heads=4)
    proto = attention(form)
    shape = ["batch", form.heads, form.length, form.length]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("softmax", 1, shape))
    analysis = analysed(form, proto)
    assert not heads_of(analysis)
    assert "graph output softmax" in analysis.pruner("macs").found.refused.values()


def test_heads_go_whole_or_become_narrower_but_not_both() -> None:
    with pytest.raises(OptionError, match="takes out heads that attention_rank makes narrower"):
        parse_list("prune_channels{heads=true},attention_rank")
