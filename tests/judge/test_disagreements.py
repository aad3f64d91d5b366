from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnx_lowrank.judge.judge import Judge, Judging
from onnx_lowrank.judge.validation import validate_models
from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm

X, LABELS = fm.classified(60)


def worse(proto: ModelProto, name: str, noise: float) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor)
    more = noise * np.random.default_rng(1).standard_normal(values.shape)
    tensor.CopyFrom(numpy_helper.from_array(fm.float32(values + more), name))
    return copy


def softmax(scores: Any) -> Any:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("batch", ["N", 4])
def test_the_worst_come_first(batch: int | str) -> None:
    proto = fm.classifier(batch=batch)
    new = worse(proto, "w1", 0.1)
    data = fm.dataset(proto, {"x": X, "labels": LABELS})
    found = validate_models(load(proto), load(new), data, fm.ONE_THREAD).disagreements
    assert len(found) == 6
    old_scores, new_scores = (
        np.concatenate([fm.run(m, {"x": X[i : i + 4]})["y"] for i in range(0, 60, 4)])
        for m in (proto, new)
    )
    # losses fall, and each is the largest of what is left: changed classes weigh most
    losses = [d.loss for d in found]
    assert losses == sorted(losses, reverse=True)
    changed = set(np.flatnonzero(old_scores.argmax(1) != new_scores.argmax(1)).tolist())
    assert changed
    assert {d.sample for d in found[: len(changed)]} <= changed
    for d in found:
        assert d.label == str(LABELS[d.sample])
        said = [
            f"class {s[d.sample].argmax()} ({softmax(s[d.sample]).max():.1%})"
            for s in (old_scores, new_scores)
        ]
        assert d.answers == (("y", *said),)
        assert d.picture == ""


def test_against_each_sample_alone() -> None:
    proto = fm.residual_net()
    new, pictures = worse(proto, "w3", 0.02), fm.pictures(20, size=8)
    proto, new = (_sized(m, 8) for m in (proto, new))
    data = fm.dataset(proto, {"x": pictures})
    found = validate_models(load(proto), load(new), data, fm.ONE_THREAD).disagreements
    judge = Judge(load(proto), data, fm.ONE_THREAD, 16)
    each = []
    for i in range(20):
        comparison = judge.comparison()
        for pair in judge.on(data.subset([i]), load(new)):
            comparison.add(pair)
        each.append(float(comparison.losses[0]))
    order = np.argsort(-np.array(each), kind="stable")[:6]
    assert [d.sample for d in found] == order.tolist()
    assert [d.loss for d in found] == pytest.approx([each[i] for i in order], rel=1e-4, abs=0)
    assert all(d.picture.startswith("data:image/png;base64,") for d in found)
    # each position has a class; as numbers they differ by some part
    _, before, after = found[0].answers[0]
    assert before == "64 classes"
    scores = [fm.run(m, {"x": pictures[order[:1]]})["y"] for m in (proto, new)]
    changed = int(np.sum(scores[0].argmax(1) != scores[1].argmax(1)))
    assert after == f"{changed} of them are others"
    judging = Judging({"y": "l2"})
    numbers = validate_models(load(proto), load(new), data, fm.ONE_THREAD, judging=judging)
    first = numbers.disagreements[0]
    old, now = (fm.run(m, {"x": pictures[[first.sample]]})["y"] for m in (proto, new))
    size = np.linalg.norm(old)
    assert first.answers[0][1:] == (
        f"norm {size:.4g}", f"differs by {np.linalg.norm(now - old) / size:.1%}"
    )  # fmt: skip


def _sized(proto: ModelProto, size: int) -> ModelProto:
    for value in (*proto.graph.input, *proto.graph.output):
        for d in value.type.tensor_type.shape.dim[2:]:
            d.dim_value = size
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_equal_models_differ_nowhere() -> None:
    proto = fm.classifier()
    data = fm.dataset(proto, {"x": X})
    assert validate_models(load(proto), load(proto), data, fm.ONE_THREAD).disagreements == ()
