from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from onnx_lowrank.analysis import class_shares
from onnx_lowrank.analysis.class_shares import ClassShares
from onnx_lowrank.linalg.output_metric import interpolated
from tests.support import Array, rng


def softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Array = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def shares_of(*batches: Array, axis: int = -1) -> Array:
    made = ClassShares(batches[0].shape[axis], axis, sum(len(b) for b in batches))
    for number, batch in enumerate(batches):
        made.update(batch, len(batch), number)
    metric = made.metric()
    assert metric is not None
    return metric.shares


def test_they_are_made_of_the_means_of_both_halves_of_every_batch() -> None:
    one, two = (3 * rng(seed).normal(size=(8, 6)) for seed in (0, 1))
    first = np.concatenate([one[:4], two[:4]])
    second = np.concatenate([one[4:], two[4:]])
    wanted = interpolated(softmax(first).mean(axis=0), softmax(second).mean(axis=0), 16)
    np.testing.assert_allclose(shares_of(one, two), wanted, rtol=1e-5)


def test_classes_may_lie_along_any_axis() -> None:
    scores = 3 * rng(0).normal(size=(6, 4, 5))
    wanted = shares_of(scores)
    np.testing.assert_allclose(shares_of(np.moveaxis(scores, 2, 1), axis=1), wanted, rtol=1e-12)


def test_rows_without_numbers_are_left_out() -> None:
    scores = 3 * rng(0).normal(size=(8, 6))
    broken = np.insert(scores, [2, 6], [[np.nan] * 6, [np.inf] * 6], axis=0)
    np.testing.assert_allclose(shares_of(broken), shares_of(scores), rtol=1e-12)


def test_there_is_no_metric_of_no_numbers() -> None:
    made = ClassShares(3, -1, 4)
    assert made.metric() is None
    made.update(np.full((4, 3), np.nan), 4)
    assert made.metric() is None


def test_single_rows_go_to_both_halves_in_turn() -> None:
    scores = 3 * rng(0).normal(size=(4, 6))
    halves = [softmax(scores[start::2]).mean(axis=0) for start in (0, 1)]
    found = shares_of(*(row[None] for row in scores))
    np.testing.assert_allclose(found, interpolated(*halves, 4), rtol=1e-5)


def test_some_positions_stand_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_shares, "ROWS", 20)
    scores = 3 * rng(0).normal(size=(2, 60, 6))
    rows = scores.reshape(-1, 6)[::6]
    np.testing.assert_allclose(shares_of(scores), shares_of(rows), rtol=1e-12)


def test_it_goes_on_from_a_state() -> None:
    one, two = (3 * rng(seed).normal(size=(8, 6)) for seed in (0, 1))
    first, again = (ClassShares(6, -1, 16) for _ in range(2))
    first.update(one, 8)
    again.sums.restore(first.sums.state())
    for made in (first, again):
        made.update(two, 8)
    metrics = [made.metric() for made in (first, again)]
    assert metrics[0] is not None
    assert metrics[1] is not None
    assert (metrics[0].shares == metrics[1].shares).all()
    with pytest.raises(ValueError, match=r"\(2, 6\) for \(2, 5\)"):
        ClassShares(5, -1, 16).sums.restore(first.sums.state())


def test_thousands_of_classes_take_little_memory() -> None:
    scores = rng(0).normal(size=(200, 18_385)).astype(np.float32)
    weight = rng(1).normal(size=(18_385, 24))
    made = ClassShares(18_385, -1, 200)
    tracemalloc.start()
    made.update(scores, 200)
    metric = made.metric()
    assert metric is not None
    metric.plain(metric.weighed(weight, 0), 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20  # a matrix of classes by classes has 2.7 GB
