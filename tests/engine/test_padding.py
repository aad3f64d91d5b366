"""Padded positions have no say, from the first sum to the last comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_lowrank import compress, select
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.samples.dataset import input_specs, load_dataset
from onnx_lowrank.samples.mask_trial import with_mask
from onnx_lowrank.samples.padding import PaddingOptions
from tests import fixtures_models as fm
from tests.analyses import analysis_of
from tests.scripted_timer import ScriptedTimer
from tests.stand_ins import encoder
from tests.support import Array, rng

Feeds = dict[str, Array]


@pytest.fixture
def sentences(tmp_path: Path) -> tuple[ModelProto, Feeds]:
    encoder(tmp_path)
    with np.load(tmp_path / "sentences.npz") as data:
        return onnx.load(tmp_path / "encoder.onnx"), {k: data[k][:80] for k in data}


def scribbled(feeds: Feeds) -> Feeds:
    """The same sentences with any tokens where nobody reads them."""
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    return {**feeds, "input_ids": np.where(mask == 1, ids, rng(3).integers(1, 100, ids.shape))}


@pytest.mark.full
@pytest.mark.parametrize("passes", ["svd,embedding_svd", "prune_channels,attention_rank,svd"])
def test_what_stands_at_padding_does_not_matter(
    passes: str, sentences: tuple[ModelProto, Feeds]
) -> None:
    net, feeds = sentences
    found = [
        compress(
            net, calib=calib, target="params=0.6", passes=passes, force=True, threads=1, cache="",
            timer=ScriptedTimer(),
        )
        for calib in (feeds, scribbled(feeds))
    ]  # fmt: skip
    one, other = found
    nets = (r.model.graph for r in found)  # what they were made from stands in their metadata
    assert len({net.SerializeToString(deterministic=True) for net in nets}) == 1
    assert one.report.validation == other.report.validation
    assert any("are padding" in str(note) for note in one.report.notes)


def test_moments_are_those_of_the_sentences(sentences: tuple[ModelProto, Feeds]) -> None:
    net, feeds = sentences
    lengths = feeds["attention_mask"].sum(axis=1)
    runs = [{k: v[i : i + 1, :n] for k, v in feeds.items()} for i, n in enumerate(lengths)]
    padded, alone = (analysis_of(net, "svd,embedding_svd", data) for data in (feeds, runs))
    # the samples are split alike, whatever their length
    for name, moments in padded.prepared.moments.items():
        other = alone.prepared.moments[name]
        assert moments.count == other.count
        assert moments.mean == pytest.approx(other.mean, abs=1e-5)
        if moments.covariance is not None:
            assert moments.covariance == pytest.approx(other.covariance, abs=1e-4)


def test_samples_are_selected_by_what_is_read(sentences: tuple[ModelProto, Feeds]) -> None:
    net, feeds = sentences
    one, other = (select(d, model=net, samples=9, by="l21") for d in (feeds, scribbled(feeds)))
    assert one.indices == other.indices


def test_a_judge_of_padded_sentences_is_one_of_sentences(
    sentences: tuple[ModelProto, Feeds],
) -> None:
    net, feeds = sentences
    model = Model(net)
    padded = load_dataset(feeds, input_specs(model))
    padded, _ = with_mask(padded, model, fm.ONE_THREAD, PaddingOptions())
    lengths = feeds["attention_mask"].sum(axis=1)
    runs = load_dataset(
        [{k: v[i : i + 1, :n] for k, v in feeds.items()} for i, n in enumerate(lengths)],
        input_specs(model),
    )
    new = ModelProto()
    new.CopyFrom(net)
    weight = next(t for t in new.graph.initializer if t.name == "down")
    values = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.1 * values, "down"))
    verdicts = [
        Judge(model, data, fm.ONE_THREAD, 16).compare(Model(new)) for data in (padded, runs)
    ]
    assert verdicts[0].loss.value == pytest.approx(verdicts[1].loss.value, rel=1e-4)
    assert verdicts[0].samples == verdicts[1].samples == len(lengths)
