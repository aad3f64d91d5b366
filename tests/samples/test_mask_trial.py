"""Which input is a mask is shown by what attention does not look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.samples.dataset import Dataset, input_specs, load_dataset
from onnx_lowrank.samples.mask_trial import by_length, with_mask
from onnx_lowrank.samples.padding import Mask, PaddingOptions, without_padding
from tests import fixtures_models as fm
from tests.stand_ins import encoder, node
from tests.support import Array

Feeds = dict[str, Array]


@pytest.fixture
def sentences(tmp_path: Path) -> tuple[ModelProto, Feeds]:
    encoder(tmp_path)
    with np.load(tmp_path / "sentences.npz") as data:
        return onnx.load(tmp_path / "encoder.onnx"), {k: data[k][:20] for k in data}


def masked(proto: ModelProto, feeds: Feeds, mask: str | None = None) -> tuple[Dataset, str]:
    model = Model(proto)
    data = load_dataset(feeds, input_specs(model))
    return with_mask(data, model, fm.ONE_THREAD, PaddingOptions(mask))


def with_nodes(proto: ModelProto, replaced: dict[str, Any]) -> ModelProto:
    """The model with other nodes in the place of those that make these tensors."""
    new = ModelProto()
    new.CopyFrom(proto)
    nodes = [replaced.get(n.output[0], n) for n in proto.graph.node]
    del new.graph.node[:]
    new.graph.node.extend(n for n in nodes if n is not None)
    return new


def renamed(proto: ModelProto, feeds: Feeds, name: str) -> tuple[ModelProto, Feeds]:
    new = ModelProto()
    new.CopyFrom(proto)
    new.graph.input[1].name = name
    for n in new.graph.node:
        n.input[:] = [name if i == "attention_mask" else i for i in n.input]
    return new, {"input_ids": feeds["input_ids"], name: feeds["attention_mask"]}


def test_where_attention_does_not_look(sentences: tuple[ModelProto, Feeds]) -> None:
    """The name of the input does not matter."""
    proto, feeds = renamed(*sentences, "m")
    data, note = masked(proto, feeds)
    assert data.mask == Mask("m", 0)
    part = np.mean(feeds["m"] == 0)
    assert note.startswith(f"{part:.0%} of the positions are padding, where m is 0")
    counted = data.counted(next(data.batches(20)))
    assert counted is not None
    assert np.array_equal(counted, feeds["m"] == 1)


def test_a_mask_of_padding(sentences: tuple[ModelProto, Feeds]) -> None:
    """As PyTorch's key_padding_mask is, which is 1 where the other is 0."""
    proto, feeds = renamed(*sentences, "m")
    turned = with_nodes(proto, {"penalty": node("Mul", ["rows", "far"], ["penalty"])})
    data, _ = masked(turned, {**feeds, "m": 1 - feeds["m"]})
    assert data.mask == Mask("m", 1)
    counted = data.counted(next(data.batches(20)))
    assert counted is not None
    assert np.array_equal(counted, feeds["m"] == 1)


def test_where_nodes(sentences: tuple[ModelProto, Feeds]) -> None:
    proto, feeds = renamed(*sentences, "m")
    new = with_nodes(proto, {
        "hidden": node("Cast", ["rows"], ["hidden"], to=onnx.TensorProto.BOOL),
        "penalty": None,
        "masked": node("Where", ["hidden", "scaled", "far"], ["masked"]),
    })  # fmt: skip
    assert masked(new, feeds)[0].mask == Mask("m", 0)


def test_what_attention_looks_at_is_no_padding(sentences: tuple[ModelProto, Feeds]) -> None:
    """Not even where the name says so, as long as it is not asked for."""
    proto, feeds = sentences
    blind = with_nodes(proto, {"masked": node("Identity", ["scaled"], ["masked"])})
    blind = with_nodes(blind, {"rows": None, "hidden": None, "penalty": None})
    data, note = masked(blind, feeds)
    assert (data.mask, note) == (None, "")
    data, note = masked(blind, feeds, "attention_mask")
    assert data.mask == Mask("attention_mask", 0)
    assert note


def test_a_model_without_softmax_is_known_by_the_name() -> None:
    proto = fm.build(
        [node("MatMul", ["x", "w"], ["h"]), node("Unsqueeze", ["attention_mask", "last"], ["m"]),
         node("Mul", ["h", "m"], ["y"])],
        {"x": ["N", "T", 4], "attention_mask": ["N", "T"]}, {"y": ["N", "T", 4]},
        {"w": np.eye(4, dtype=np.float32), "last": np.array([-1], np.int64)},
    )  # fmt: skip
    feeds = {"x": np.ones((6, 5, 4), np.float32), "attention_mask": np.ones((6, 5), np.float32)}
    assert masked(proto, feeds)[0].mask is None
    feeds["attention_mask"][:, 3:] = 0
    assert masked(proto, feeds)[0].mask == Mask("attention_mask", 0)
    feeds["attention_mask"][:, 3:] = 0.5
    assert masked(proto, feeds)[0].mask is None


def test_nothing_is_padded(sentences: tuple[ModelProto, Feeds]) -> None:
    proto, feeds = sentences
    full = {**feeds, "attention_mask": np.ones_like(feeds["attention_mask"])}
    assert masked(proto, full)[0].mask is None
    assert masked(proto, feeds, "none")[0].mask is None


def test_what_is_asked_for(sentences: tuple[ModelProto, Feeds]) -> None:
    proto, feeds = sentences
    assert masked(proto, feeds, "attention_mask=1")[0].mask == Mask("attention_mask", 1)
    for wrong in ("mask", "attention_mask=2", "attention_mask="):
        with pytest.raises(OptionError, match=f"--mask {wrong}: give an input of the model"):
            masked(proto, feeds, wrong)


def test_subsets_keep_it_and_digests_tell_it(sentences: tuple[ModelProto, Feeds]) -> None:
    data, _ = masked(*sentences)
    plain, _ = masked(*sentences, "none")
    assert data.subset([1, 2]).mask == data.mask
    assert data.digest() != plain.digest()
    sizes = [len(list(d.masks(7))) for d in (data, plain)]
    assert sizes == [len(list(data.batches(7)))] * 2


def test_without_padding() -> None:
    counted = np.array([[True, True, False], [False, False, False]])
    states, pooled = np.arange(12.0).reshape(2, 3, 2), np.arange(8.0).reshape(2, 4)
    assert np.array_equal(without_padding(states, counted, 0), states[:1, :2])
    assert np.array_equal(without_padding(states, counted, 1), states[1:])  # nothing but padding
    assert np.array_equal(without_padding(pooled, counted, 0), pooled[:1])


def test_batches_end_where_their_longest_sample_does(sentences: tuple[ModelProto, Feeds]) -> None:
    proto, feeds = sentences
    data, _ = masked(proto, feeds)
    ordered = by_length(data, Model(proto), fm.ONE_THREAD)
    lengths = np.sort(feeds["attention_mask"].sum(axis=1))
    given = [f["attention_mask"] for f in ordered.batches(4)]
    assert [m.shape for m in given] == [(4, lengths[i + 3]) for i in range(0, 20, 4)]
    assert np.concatenate([m.sum(axis=1) for m in given]).tolist() == lengths.tolist()
    tokens = sorted(row[row > 0].tolist() for row in feeds["input_ids"])
    found = [row[row > 0].tolist() for f in ordered.batches(4) for row in f["input_ids"]]
    assert sorted(found) == tokens
    part = ordered.subset([0, 1])
    assert next(part.batches(2))["input_ids"].shape == (2, lengths[1])
    assert part.feed(0)["input_ids"].shape == (1, 12)  # an inference as it was given


@pytest.mark.parametrize("why", ["pooled", "fixed", "scores"])
def test_padding_that_cannot_be_cut_off(why: str, sentences: tuple[ModelProto, Feeds]) -> None:
    """It counts in a mean, the axis is fixed, or outputs have positions along other axes."""
    proto, feeds = sentences
    new = ModelProto()
    new.CopyFrom(proto)
    if why == "fixed":
        for value in new.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 12
    else:
        del new.graph.output[:]
        shape = ["N", 32] if why == "pooled" else ["N", "T", "T"]
        new.graph.output.append(
            onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)
        )
        new.graph.node.append(
            node("ReduceMean", ["last_hidden_state"], ["y"], axes=[1], keepdims=0)
            if why == "pooled" else node("Identity", ["shares"], ["y"])
        )  # fmt: skip
    data, _ = masked(new, feeds)
    assert data.mask is not None
    assert by_length(data, Model(new), fm.ONE_THREAD) is data
