"""Losses against formulas by hand; 0 is the original, 1 the best constant answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from onnx_lowrank.judge.answers import Figures, changes, figures_of
from onnx_lowrank.judge.measures import Scale
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.verdict import Verdict, estimated, verdict_on

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(3)


def scale_of(reading: Reading, old: Array) -> Scale:
    scale = Scale(reading)
    for part in np.array_split(old, 3):  # as it comes in batches
        scale.add(part)
    return scale


def softmax(scores: Array) -> Array:
    return np.asarray(special.softmax(scores, axis=-1))


OLD = RANDOM.normal(0, 2, (40, 5, 7))
NEW = OLD + RANDOM.normal(0, 0.5, OLD.shape)

FORMS = {
    "scores": (OLD, NEW),
    "probabilities": (softmax(OLD), softmax(NEW)),
    "logarithms": (np.log(softmax(OLD)), np.log(softmax(NEW))),
}


@pytest.mark.parametrize("form", FORMS)
def test_class_scores(form: str) -> None:
    old, new = FORMS[form]
    p, q = softmax(OLD), softmax(NEW)
    found = scale_of(Reading("y", "kl", -1, form), old).divergences(old, new)
    apart = stats.entropy(p, q, axis=-1).mean(axis=1)
    rows = p.reshape(-1, 7)
    told = stats.entropy(rows, np.broadcast_to(rows.mean(axis=0), rows.shape), axis=1).mean()
    assert found == pytest.approx(apart / told, rel=1e-6)


def test_maps() -> None:
    p, q = special.expit(OLD), special.expit(NEW)
    found = scale_of(Reading("y", "bernoulli", -1), p).divergences(p, q)

    def apart(p: Array, q: Array) -> Array:
        return np.asarray(special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q))

    told = apart(p, np.broadcast_to(p.mean(axis=(0, 1)), p.shape)).mean()
    assert found == pytest.approx(apart(p, q).mean(axis=(1, 2)) / told, rel=1e-6)


def test_directions() -> None:
    a = OLD / np.linalg.norm(OLD, axis=-1, keepdims=True)
    b = NEW / np.linalg.norm(NEW, axis=-1, keepdims=True)
    found = scale_of(Reading("y", "cosine", -1), OLD).divergences(OLD, NEW)
    mean = a.reshape(-1, 7).mean(axis=0)
    told = 1 - (a @ mean / np.linalg.norm(mean)).mean()
    assert found == pytest.approx((1 - (a * b).sum(axis=-1)).mean(axis=1) / told, rel=1e-6)


def test_each_coordinate_counts_by_its_variance() -> None:
    units = np.array([1.0, 1e3, 1e-3, 1, 1, 1, 5])
    old, new = OLD * units + 100 * units, NEW * units + 100 * units
    found = scale_of(Reading("y", "l2", -1), old).divergences(old, new)
    variance = OLD.reshape(-1, 7).var(axis=0)
    assert found == pytest.approx((np.square(NEW - OLD).mean(axis=1) / variance).mean(axis=1),
                                  rel=1e-6)  # fmt: skip


def test_a_coordinate_that_is_constant_counts_in_the_unit_of_the_others() -> None:
    old, new = OLD.copy(), OLD.copy()
    old[..., 2] = 5.0
    new[..., 2] = 5.1
    found = scale_of(Reading("y", "l2", -1), old).divergences(old, new)
    variance = np.delete(OLD, 2, axis=-1).reshape(-1, 6).var(axis=0).mean()
    assert found == pytest.approx(np.full(40, 0.1**2 / variance / 7), rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "form", "constant"),
    [("kl", "probabilities", "mean"), ("bernoulli", "", "mean"), ("l2", "", "mean")],
)
def test_the_best_constant_answer_loses_everything(kind: str, form: str, constant: str) -> None:
    old = softmax(OLD)
    new = np.broadcast_to(old.mean(axis=(0, 1)), old.shape)
    found = scale_of(Reading("y", kind, -1, form), old).divergences(old, new)
    assert found.mean() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("kind", ["kl", "bernoulli", "cosine", "l2"])
def test_the_original_loses_nothing(kind: str) -> None:
    old = softmax(OLD).astype(np.float32)
    found = scale_of(Reading("y", kind, -1, "probabilities"), old).divergences(old, old)
    assert found == pytest.approx(np.zeros(40), abs=1e-12)


@pytest.mark.parametrize("kind", ["kl", "bernoulli", "cosine", "l2"])
def test_nan_where_the_original_has_numbers_is_an_infinite_loss(kind: str) -> None:
    old = softmax(OLD)
    new = old.copy()
    new[3, 0, 0] = np.nan
    found = scale_of(Reading("y", kind, -1, "probabilities"), old).divergences(old, new)
    assert np.isinf(found[3])
    assert np.isfinite(np.delete(found, 3)).all()
    assert estimated(found).value == np.inf


@pytest.mark.parametrize("kind", ["kl", "bernoulli", "cosine", "l2"])
def test_what_is_nan_in_the_original_does_not_count(kind: str) -> None:
    old = softmax(OLD)
    old[3] = np.nan
    found = scale_of(Reading("y", kind, -1, "probabilities"), old).divergences(old, softmax(NEW))
    assert found[3] == 0
    assert np.isfinite(found).all()


def test_a_probability_of_zero_costs_a_finite_loss() -> None:
    old = np.array([[0.5, 0.5], [1.0, 0.0]])
    found = scale_of(Reading("y", "kl", -1, "probabilities"), old).divergences(old, old[::-1])
    assert np.isfinite(found).all()
    assert found[0] > 1


def test_a_constant_original_is_judged_by_its_size() -> None:
    old = np.full((4, 3), 2.0)
    found = scale_of(Reading("y", "l2", -1), old).divergences(old, old + 0.2)
    assert found == pytest.approx(np.full(4, 0.01), rel=1e-9)


def test_whole_numbers_and_texts() -> None:
    scale = Scale(Reading("y", "equal"))
    assert scale.divergences(np.array([[1, 2], [3, 4]]), np.array([[1, 9], [3, 4]])).tolist() == [
        0.5,
        0,
    ]
    texts = np.array([["a"], ["b"]], dtype=object)
    assert scale.divergences(texts, np.array([["a"], ["c"]], dtype=object)).tolist() == [0, 1]


# what people ask


def one_hot(classes: Array, width: int = 4) -> Array:
    return np.eye(width)[classes]


def judged(reading: Reading, old: Array, new: Array) -> Any:
    figures = Figures()
    scale = scale_of(reading, old)
    figures_of(reading, old, new, figures)
    return verdict_on(reading, scale.divergences(old, new), figures)


KL = Reading("y", "kl", -1, "probabilities")


def test_one_class_for_each_sample() -> None:
    found = judged(KL, one_hot(np.array([0, 1, 2, 3])), one_hot(np.array([0, 1, 2, 0])))
    assert found.answer == "samples"
    assert found.kept.value == found.figures["same_samples"].value == 0.75


def test_a_sequence_stays_where_it_reads_the_same() -> None:
    old = one_hot(np.array([[0, 0, 1, 0], [1, 1, 2, 2]]))
    new = one_hot(np.array([[0, 1, 1, 0], [1, 1, 2, 3]]))
    found = judged(KL, old, new)
    assert found.answer == "sequences"
    assert found.kept.value == 0.5  # the first only has its letter a step earlier
    assert found.figures["same_samples"].value == 0
    assert found.figures["same_positions"].value == 0.75


def test_maps_of_classes_are_judged_by_position() -> None:
    classes = RANDOM.integers(0, 4, (3, 5, 6))
    new = classes.copy()
    new[:, 0, 0] = (new[:, 0, 0] + 1) % 4
    found = judged(KL, one_hot(classes), one_hot(new))
    assert found.answer == "positions"
    assert found.kept.value == pytest.approx(29 / 30)


def test_overlap_of_maps() -> None:
    old = np.array([[[0.9, 0.8], [0.1, 0.2]], [[0.1, 0.1], [0.1, 0.1]]])
    new = np.array([[[0.9, 0.1], [0.1, 0.2]], [[0.1, 0.1], [0.1, 0.1]]])
    found = judged(Reading("y", "bernoulli", -1), old, new)
    assert found.figures["overlap"].value == 0.5  # of the one sample that shows anything
    assert found.figures["same_positions"].value == pytest.approx(7 / 8)


def test_one_yes_or_no_for_each_sample() -> None:
    old = np.array([[0.9], [0.2], [0.7], [0.1]])
    found = judged(Reading("y", "bernoulli", -1), old, np.array([[0.6], [0.1], [0.4], [0.3]]))
    assert (found.answer, found.kept.value) == ("positions", 0.75)


def test_neighbours() -> None:
    old = RANDOM.normal(0, 1, (30, 8))
    reading = Reading("y", "cosine", -1)
    assert judged(reading, old, 3 * old).figures["neighbours"].value == 1
    mixed = judged(reading, old, RANDOM.normal(0, 1, (30, 8))).figures["neighbours"].value
    assert mixed < 0.5
    assert "neighbours" not in judged(reading, old[:5], old[:5]).figures


def test_the_worst_output_is_the_one_of_which_least_stays() -> None:
    good = judged(KL, one_hot(np.array([0, 1, 2, 3])), one_hot(np.array([0, 1, 2, 3])))
    bad = judged(KL, one_hot(np.array([0, 1, 2, 3])), one_hot(np.array([3, 1, 2, 3])))
    assert Verdict(4, good.loss, (good, bad)).worst is bad
    assert Verdict(4, good.loss).worst is None


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ([0, 1, 2], [0, 1, 3], [0, 0, 1]),
        ([[0, 0, 1], [1, 1, 2]], [[0, 1, 1], [1, 2, 3]], [0, 1]),
        ([[[0, 1], [2, 3]]], [[[0, 1], [2, 2]]], [0.25]),
    ],
    ids=["classes", "sequences", "maps"],
)
def test_part_of_the_answers_that_change(old: Any, new: Any, changed: list[float]) -> None:
    found = changes(KL, one_hot(np.array(old)), one_hot(np.array(new)))
    assert found is not None
    assert found.tolist() == changed


def test_numbers_are_no_answers() -> None:
    assert changes(Reading("y", "l2"), OLD, NEW) is None


def test_other_numbers_keep_a_correlation() -> None:
    found = judged(Reading("y", "l2", -1), OLD, NEW)
    assert found.answer == "correlation"
    assert found.kept.value == pytest.approx((1 - found.loss.value) ** 0.5, rel=1e-12)
    assert found.kept.low < found.kept.value < found.kept.high
    lost = judged(Reading("y", "l2", -1), OLD, np.full_like(OLD, np.nan))
    assert lost.kept.value == lost.kept.high == -np.inf
