from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, helper
from scipy.stats import binomtest, multinomial

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.accuracy import accuracy_drop
from onnx_lowrank.judge.requirement import Metric, Requirement, Score
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.judge.scoring import scorer_for
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from tests import fixtures_models as fm
from tests.support import quick

Array = npt.NDArray[Any]

RNG = np.random.default_rng(3)
X = fm.float32(RNG.standard_normal((90, 4)))
LABELS = X.argmax(1)


def linear(matrix: Any) -> Model:
    """``y = x @ matrix``, one vector a sample."""
    weights = {"w": np.asarray(matrix, np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    size = weights["w"].shape[1]
    return load(fm.build(nodes, {"x": ["N", 4]}, {"y": ["N", size]}, weights))


SAME = linear(np.eye(4))
OTHER = linear(np.eye(4) + 0.6 * RNG.standard_normal((4, 4)))
NEAR = linear(np.eye(4) + 0.1 * np.random.default_rng(4).standard_normal((4, 4)))


def outputs(model: Model, x: Array = X) -> Array:
    return fm.run(model.proto, {"x": x})["y"]


def judge(
    kind: str, bound: float = 0.0, *, metric: Metric | None = None, labels: Any = LABELS,
    model: Model = SAME, x: Array = X, size: int = 7,
) -> Scorer:  # fmt: skip
    data = {"x": x} if labels is None else {"x": x, "labels": labels}
    requirement = Requirement(kind, bound, metric)
    return scorer_for(requirement, model, fm.dataset(model.proto, data), fm.ONE_THREAD, size)


# against brute force


@pytest.mark.parametrize("size", [1, 7, 90])
def test_drop(size: int) -> None:
    now = outputs(OTHER).argmax(1)
    labels = np.where(np.arange(90) % 5 == 0, (LABELS + 1) % 4, LABELS)
    score = judge("drop", labels=labels, size=size).score(OTHER)
    before, after = outputs(SAME).argmax(1) == labels, now == labels
    assert score.samples == 90
    assert score.value == pytest.approx(before.mean() - after.mean(), rel=0, abs=1e-12)
    assert score.value > 0.05
    assert score.low < score.value < score.high
    # nothing is known for sure of a drop that 90 samples do not show
    same = judge("drop", labels=labels, size=size).score(SAME)
    assert same.value == 0
    assert 0.01 < same.high < 0.04
    assert same.low == -same.high


def noisy_scores(count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Four scores, and labels drawn by the probabilities that they are, at a temperature of 2."""
    scores = 6 * random.standard_normal((count, 4))
    chances = np.exp(scores / 2) / np.exp(scores / 2).sum(1, keepdims=True)
    labels = np.array([random.choice(4, p=row) for row in chances])
    return fm.float32(scores), labels


@pytest.mark.full
def test_expected_drop_moves_less_than_the_counted() -> None:
    truth = Requirement("drop", 0.0)
    scores: dict[bool, list[Score]] = {True: [], False: []}
    for seed in range(30):
        x, labels = noisy_scores(300, np.random.default_rng(seed))
        data = fm.dataset(SAME.proto, {"x": x, "labels": labels})
        for expected, found in scores.items():
            judged = scorer_for(truth, SAME, data, fm.ONE_THREAD, 300, expected)
            found.append(judged.score(NEAR))
    assert all(s.expected for s in scores[True])
    assert not any(s.expected for s in scores[False])
    values = {e: np.array([s.value for s in found]) for e, found in scores.items()}
    # one truth, which both tell, and the expected one with half the scatter at most
    apart = values[True].mean() - values[False].mean()
    assert abs(apart) < 3 * np.std(values[True] - values[False]) / 30**0.5
    assert values[True].std() < 0.5 * values[False].std()
    centre = values[True].mean()
    inside = [s.low <= centre <= s.high for s in scores[True]]
    assert sum(inside) >= 26
    text = scores[True][0].text(truth)
    assert " points expected [" in text


def test_what_labels_belie_is_counted() -> None:
    # sure where it is wrong, in doubt where it is right: no temperature mends that
    rows = np.arange(900)
    wrong = rows % 2 == 0
    x = fm.float32(np.eye(4)[rows % 4] * np.where(wrong, 50, 1)[:, None])
    truth = Requirement("drop", 0.0)
    for labels in ((rows + wrong) % 4, (rows + 2) % 4):
        data = fm.dataset(SAME.proto, {"x": x, "labels": labels})
        judged = scorer_for(truth, SAME, data, fm.ONE_THREAD, 90, True)
        assert judged.score(SAME) == judge("drop", labels=labels, x=x).score(SAME)


@pytest.mark.parametrize("parts", [(0.02, 0.02), (0.1, 0.05), (0.3, 0.0), (0.0, 0.0)])
def test_interval_of_a_drop_covers_it(parts: tuple[float, float]) -> None:
    # over all that n samples can show, at the probability of each
    n, covered = 40, 0.0
    spread = multinomial(n, (*parts, 1 - sum(parts)))
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            kind = np.repeat([0, 1, 2], (lost, won, n - lost - won))
            score = accuracy_drop(kind != 1, kind != 0)
            assert score.value == (lost - won) / n
            if score.low <= parts[0] - parts[1] <= score.high:
                covered += float(spread.pmf((lost, won, n - lost - won)))
    assert covered > 0.93


def test_agreement() -> None:
    score = judge("agreement", labels=None).score(OTHER)
    same = outputs(OTHER).argmax(1) == LABELS
    assert 0.4 < same.mean() < 0.95
    wilson = binomtest(int(same.sum()), 90).proportion_ci(method="wilson")
    assert (score.value, score.samples) == (same.mean(), 90)
    assert (score.low, score.high) == pytest.approx((wilson.low, wilson.high), rel=0, abs=1e-12)
    assert judge("agreement").score(SAME).value == 1


@quick(20)
@given(st.floats(1e-3, 2.0))
def test_snr(scale: float) -> None:
    score = judge("snr", labels=None).score(linear((1 + scale) * np.eye(4)))
    # every sample has the same ratio, and so has every draw of them
    expected = -20 * math.log10(scale)
    found = (score.low, score.value, score.high)
    assert found == pytest.approx((expected,) * 3, rel=0, abs=1e-2)


def test_snr_of_two_models() -> None:
    old, new = outputs(SAME).astype(float), outputs(OTHER).astype(float)
    expected = 10 * math.log10(np.sum(old**2) / np.sum((old - new) ** 2))
    for size in (1, 7, 90):
        score = judge("snr", size=size).score(OTHER)
        assert score.value == pytest.approx(expected, rel=0, abs=1e-9)
        assert expected - 2 < score.low < expected < score.high < expected + 2


def test_snr_at_its_ends() -> None:
    exact = judge("snr").score(SAME)
    assert (exact.low, exact.value, exact.high) == (math.inf,) * 3
    broken = judge("snr").score(linear(np.diag([np.nan, 1, 1, 1])))
    assert broken.value == -math.inf
    silent = judge("snr", model=linear(np.zeros((4, 4)))).score(SAME)
    assert silent.value == -math.inf


def test_snr_looks_at_every_output_of_floats() -> None:
    def two(second: float) -> Model:
        weights: dict[str, Any] = {"w": fm.float32(np.eye(4)), "s": np.float32(second)}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="only"),
            helper.make_node("Mul", ["x", "s"], ["m"]),
            helper.make_node("ReduceMean", ["m"], ["z"], keepdims=0),
        ]
        return load(fm.build(nodes, {"x": ["N", 4]}, {"y": ["N", 4], "z": []}, weights))

    # z has no axis of samples: the models are then run a sample at a time
    means = X.astype(float).mean(1)
    noise, signal = np.sum(means**2), np.sum(X.astype(float) ** 2) + np.sum(means**2)
    score = judge("snr", model=two(1.0)).score(two(2.0))
    assert score.samples == 90
    assert score.value == pytest.approx(10 * math.log10(signal / noise), rel=0, abs=1e-3)


def test_other_shapes_are_no_answers() -> None:
    with pytest.raises(ValidationError, match=r"'y' has the shape \(7, 3\), and the original's"):
        judge("snr").score(linear(np.eye(4)[:, :3]))


# the user's own


def top1(outputs: Mapping[str, Array], labels: Array | None) -> float:
    assert labels is not None
    return float(np.mean(outputs["y"].argmax(1) == labels))


def test_own_metric_with_labels() -> None:
    own = judge("drop", 0.1, metric=top1).score(OTHER)
    built_in = judge("drop", 0.1).score(OTHER)
    assert own.value == built_in.value
    # two ways to the same interval
    assert own.low == pytest.approx(built_in.low, rel=0, abs=0.03)
    assert own.high == pytest.approx(built_in.high, rel=0, abs=0.03)
    assert own == judge("drop", 0.1, metric=top1, size=90).score(OTHER)


def test_own_metric_without_labels() -> None:
    seen: list[Any] = []

    def least(outputs: Mapping[str, Array], labels: Array | None) -> float:
        seen.append(labels)
        return -float(np.abs(outputs["y"]).mean())

    score = judge("drop", 0.1, metric=least, labels=None).score(linear(2 * np.eye(4)))
    assert score.value == pytest.approx(np.abs(X).mean(), rel=1e-5, abs=0)
    assert score.low < score.value < score.high
    assert set(seen) == {None}


def test_own_metric_of_a_fixed_batch() -> None:
    weights = {"w": fm.float32(np.eye(4))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="only")]
    fixed = load(fm.build(nodes, {"x": [3, 4]}, {"y": [3, 4]}, weights))
    score = judge("drop", 0.1, metric=top1, model=fixed).score(fixed)
    assert (score.value, score.samples) == (0.0, 90)
    assert judge("drop", model=fixed).score(OTHER).value == judge("drop").score(OTHER).value


@pytest.mark.parametrize(
    ("metric", "labels", "part"),
    [
        (lambda *_: {}["gone"], LABELS, r"the metric failed with KeyError: 'gone'$"),
        (top1, None, "the metric failed with AssertionError.*; the data has no labels"),
        (lambda *_: math.nan, LABELS, "the metric gives NaN or infinity for the original"),
    ],
)
def test_own_metric_that_fails(metric: Callable[..., float], labels: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        judge("drop", metric=metric, labels=labels).score(OTHER)


def test_own_metric_that_a_broken_model_breaks() -> None:
    score = judge("drop", metric=lambda o, _: float(o["y"].mean())).score(
        linear(np.full((4, 4), np.nan))
    )
    assert score.value == math.inf


# what cannot be judged


def whole_numbers() -> ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="only"),
        helper.make_node("ArgMax", ["h"], ["y"], axis=1, keepdims=0),
    ]
    proto = fm.build(nodes, {"x": ["N", 4]}, {"y": None}, {"w": fm.float32(np.eye(4))})
    proto.graph.output[0].type.tensor_type.elem_type = 7
    return proto


def test_what_is_missing_and_what_helps() -> None:
    with pytest.raises(DataError, match=r"needs labels .* or a metric; .* bound the agreement"):
        judge("drop", labels=None)
    numbers = load(whole_numbers())
    with pytest.raises(
        DataError, match=r"no output is a vector of class scores; bound the loss or"
    ):
        judge("agreement", model=numbers)
    with pytest.raises(DataError, match=r"no output has floating-point numbers; .* give a metric"):
        judge("snr", model=numbers)
    assert judge("drop", metric=lambda o, t: float((o["y"] == t).mean()),
                 model=numbers).score(numbers).value == 0  # fmt: skip
