"""Losses of a detector's boxes and scores against formulas by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnx_lowrank.judge.answers import Figures, changes, figures_of
from onnx_lowrank.judge.detections import DetectionScale, overlaps
from onnx_lowrank.judge.measures import entropy
from onnx_lowrank.judge.reading import Reading, Structure
from onnx_lowrank.judge.readings import readings_of
from onnx_lowrank.judge.verdict import verdict_on

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(6)
SAMPLES, PLACES, CLASSES = 12, 30, 3
#: boxes and scores along axis 1, as YOLOv8 exports them
MAPS = ((-2, 0, 4, False), (-2, 4, 4 + CLASSES, True))


def detections(objects: int = 2) -> Array:
    """Boxes (middle and size) and scores, ``(samples, 4 + classes, places)``."""
    boxes = RANDOM.uniform(10, 90, (SAMPLES, 4, PLACES))
    boxes[:, 2:] = RANDOM.uniform(2, 20, (SAMPLES, 2, PLACES))
    scores = RANDOM.uniform(0, 0.01, (SAMPLES, CLASSES, PLACES))
    for sample in scores:
        places = RANDOM.choice(PLACES, objects, replace=False)
        sample[RANDOM.integers(0, CLASSES, objects), places] = RANDOM.uniform(0.3, 0.9, objects)
    return np.concatenate([boxes, scores], axis=1)


OLD = detections()


def read(array: Array, maps: Any = MAPS) -> list[Reading]:
    return readings_of("y", [array], Structure(maps=maps))


def scale_of(kind: str, old: Array, maps: Any = MAPS) -> DetectionScale:
    scale = DetectionScale(next(r for r in read(old, maps) if r.kind == kind))
    for part in np.array_split(old, 3):  # as it comes in batches
        scale.add(part)
    return scale


@pytest.mark.parametrize(
    ("one", "other", "form", "expected"),
    [
        ([0, 0, 4, 4], [2, 0, 6, 4], "corners", 1 / 3),
        ([2, 2, 4, 4], [4, 2, 4, 4], "middle", 1 / 3),
        ([5, 5, 2, 2], [5, 5, 4, 4], "middle", 1 / 4),
        ([0, 0, 1, 1], [2, 2, 3, 3], "corners", 0),
        ([3, 3, 3, 3], [3, 3, 3, 3], "corners", 1),
        ([3, 3, 3, 3], [4, 3, 4, 3], "corners", 0),
        ([0, 0, 4, 4], [4, 4, 0, 0], "corners", 0),  # turned over: of no area
    ],
)
def test_overlap_of_two_boxes(
    one: list[float], other: list[float], form: str, expected: float
) -> None:
    both = (np.array([one], np.float64), np.array([other], np.float64))
    assert overlaps(*both, form) == pytest.approx(expected, abs=1e-12)
    assert overlaps(*both[::-1], form) == pytest.approx(expected, abs=1e-12)


def test_a_detector_is_found_by_its_boxes() -> None:
    corners = OLD.copy()
    corners[:, 2:4] += corners[:, :2]
    turned = OLD.copy()
    turned[:, 2] *= -1
    wide = np.concatenate([OLD[:, :1], OLD], axis=1)
    five = ((-2, 0, 5, False), (-2, 5, 5 + CLASSES, True))
    last = np.swapaxes(OLD, 1, 2)
    behind = ((-1, 0, 4, False), (-1, 4, 4 + CLASSES, True))
    found = [
        [(r.kind, r.form) for r in read(array, maps)]
        for array, maps in ((OLD, MAPS), (corners, MAPS), (last, behind), (turned, MAPS),
                            (wide, five), (OLD[:1, :, :9], MAPS))
    ]  # fmt: skip
    scores = ("bernoulli", "")
    assert found[0] == found[2] == [("boxes", "middle"), scores]
    assert found[1] == [("boxes", "corners"), scores]
    assert found[3] == found[4] == found[5] == [("l2", ""), scores]  # too few places, the last


def test_boxes_lose_what_does_not_overlap_where_the_scores_are() -> None:
    new = OLD.copy()
    new[:, :4] += RANDOM.normal(0, 2, (SAMPLES, 4, PLACES))
    weights = OLD[:, 4:].max(axis=1)
    apart = np.array(
        [
            1 - overlaps(a.T, b.T, "middle")
            for a, b in zip(OLD[:, :4], new[:, :4], strict=True)
        ]
    )  # fmt: skip
    found = scale_of("boxes", OLD).divergences(OLD, new)
    expected = (weights * apart).sum(axis=1) / (weights.sum() / SAMPLES)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=0)
    nothing = OLD.copy()
    nothing[:, :2] += 1000
    assert scale_of("boxes", OLD).divergences(OLD, nothing).mean() == pytest.approx(1, rel=1e-12)


def test_scores_lose_most_where_something_is_seen() -> None:
    scale = scale_of("bernoulli", OLD)
    weights = OLD[:, 4:].max(axis=1)
    p = OLD[:, 4:]
    q = np.clip(p * RANDOM.uniform(0.5, 1.5, p.shape), 0, 0.99)
    apart = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(axis=1)
    mean = np.einsum("sp,scp->c", weights, p) / weights.sum()
    spread = entropy(mean).mean() - (
        np.einsum("sp,scp->c", weights, entropy(p)) / weights.sum()
    ).mean()  # fmt: skip
    new = np.concatenate([OLD[:, :4], q], axis=1)
    expected = (weights * apart).sum(axis=1) / (weights.sum() / SAMPLES) / spread
    np.testing.assert_allclose(scale.divergences(OLD, new), expected, rtol=1e-9, atol=0)
    # the best constant answer tells nothing
    same = OLD.copy()
    same[:, 4:] = mean[:, None]
    assert scale.divergences(OLD, same).mean() == pytest.approx(1, rel=1e-9)


def with_objectness(array: Array) -> Array:
    """The same as YOLOv5 has it: whether anything is there, then what it would be."""
    scores = array[:, 4:]
    whole = scores.max(axis=1, keepdims=True)
    kinds = np.where(whole > 0.02, scores / whole, RANDOM.uniform(0, 0.9, scores.shape))
    return np.concatenate([array[:, :4], whole, kinds], axis=1)


def test_objectness_is_told_from_a_first_class() -> None:
    maps = ((-2, 0, 4, False), (-2, 4, 5 + CLASSES, True))
    many = detections(12)  # of which the first class has some
    assert not any(r.objectness for old in (OLD, many) for r in read(old))
    for array in (OLD, many):
        array = with_objectness(array)
        assert all(r.objectness for r in read(array, maps))
    alone = with_objectness(OLD)[:, :5]
    assert not any(r.objectness for r in read(alone, ((-2, 0, 4, False), (-2, 4, 5, True))))


@pytest.mark.parametrize("kind", ["boxes", "bernoulli"])
def test_places_weigh_by_objectness_and_class(kind: str) -> None:
    maps = ((-2, 0, 4, False), (-2, 4, 5 + CLASSES, True))
    old = with_objectness(OLD)
    scale, whole = scale_of(kind, old, maps), old[:, 4:5]
    other = with_objectness(detections())
    behind, before = (np.where(far, old, other) for far in (whole > 0.02, whole <= 0.02))
    losses = [scale.divergences(old, new).mean() for new in (behind, before)]
    assert losses[0] < losses[1] / 5
    weights = np.concatenate([w for _, w in scale._weighed(old)])
    expected = (old[:, 4] * old[:, 5:].max(axis=1)).reshape(-1)
    np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["boxes", "bernoulli"])
def test_the_original_loses_nothing_and_background_little(kind: str) -> None:
    scale, seen = scale_of(kind, OLD), OLD[:, 4:].max(axis=1, keepdims=True) > 0.02
    assert scale.divergences(OLD, OLD).tolist() == [0] * SAMPLES
    other = detections()
    behind, before = np.where(seen, OLD, other), np.where(seen, other, OLD)
    losses = [scale.divergences(OLD, new).mean() for new in (behind, before)]
    assert losses[0] < losses[1] / 5


@pytest.mark.parametrize("kind", ["boxes", "bernoulli"])
def test_numbers_that_are_not_finite(kind: str) -> None:
    column = 0 if kind == "boxes" else 4
    place = int(OLD[0, 4:].max(axis=0).argmax())
    scale, broken, known = scale_of(kind, OLD), OLD.copy(), OLD.copy()
    broken[0, column, place] = np.nan
    found = scale.divergences(OLD, broken)
    assert found[0] == np.inf
    assert found[1:].tolist() == [0] * (SAMPLES - 1)
    known[0, column, place] = np.inf  # of the original: that place says nothing
    assert scale_of(kind, known).divergences(known, OLD)[0] == pytest.approx(0, abs=1e-12)


def test_without_an_object_nothing_divides_by_zero() -> None:
    empty = OLD.copy()
    empty[:, 4:] = 0
    for kind in ("boxes", "bernoulli"):
        scale = scale_of(kind, empty)
        assert scale.divergences(empty, empty).tolist() == [0] * SAMPLES
        assert np.isfinite(scale.divergences(empty, OLD)).all()


def test_what_is_kept_of_boxes_is_their_overlap() -> None:
    scale = scale_of("boxes", OLD)
    new = OLD.copy()
    new[:, 0] += 0.5
    losses = scale.divergences(OLD, new)
    verdict = verdict_on(scale.reading, losses, Figures())
    assert verdict.answer == "boxes"
    assert verdict.kept.value == pytest.approx(1 - losses.mean(), rel=1e-12)


# class scores of places, boxes in another output


def classes(objects: int = 3) -> Array:
    """Probabilities of nothing and two classes at places, few of which see something."""
    scores = RANDOM.normal(0, 0.5, (SAMPLES, PLACES, 3))
    scores[..., 0] += 8
    for sample in scores:
        places = RANDOM.choice(PLACES, objects, replace=False)
        sample[places, 0] -= 11
        sample[places, RANDOM.integers(1, 3, objects)] += 6
    chances = np.exp(scores)
    made: Array = chances / chances.sum(axis=-1, keepdims=True)
    return made


CLASSED, FOUR = classes(), (SAMPLES, PLACES, 4)


def classed(array: Array = CLASSED, *beside: tuple[int, ...]) -> Reading:
    (reading,) = readings_of("y", [array], beside=beside)
    return reading


def classed_scale(array: Array = CLASSED) -> DetectionScale:
    scale = DetectionScale(classed(CLASSED, FOUR))
    for part in np.array_split(array, 3):
        scale.add(part)
    return scale


def test_classes_weigh_by_what_is_not_nothing_where_boxes_lie_beside() -> None:
    assert classed(CLASSED, CLASSED.shape, FOUR).background == 0
    turned = np.moveaxis(CLASSED, 1, 2)
    assert classed(turned, (SAMPLES, 4, PLACES)).background == 0
    for beside in ((), ((SAMPLES, PLACES - 1, 4),), ((SAMPLES, 4, PLACES),)):
        assert classed(CLASSED, *beside).background is None
    many = RANDOM.dirichlet([1, 1, 1, 1], (SAMPLES, PLACES))  # no class is nothing
    assert classed(many, FOUR).background is None


def test_a_lost_object_is_a_loss_however_many_places_see_nothing() -> None:
    scale = classed_scale()
    assert scale.divergences(CLASSED, CLASSED) == pytest.approx(0, abs=1e-12)
    mean = np.average(CLASSED.reshape(-1, 3), axis=0, weights=1 - CLASSED[..., 0].reshape(-1))
    constant = np.broadcast_to(mean, CLASSED.shape)
    assert scale.divergences(CLASSED, constant).mean() == pytest.approx(1, rel=1e-9)
    blind = CLASSED.copy()
    blind[..., :] = [0.998, 0.001, 0.001]  # right at nearly all places
    assert scale.divergences(CLASSED, blind).mean() > 1
    assert changes(scale.reading, CLASSED, blind).tolist() == [1] * SAMPLES  # type: ignore[union-attr]


def test_what_is_kept_is_where_either_model_sees_something() -> None:
    scale = classed_scale()
    new = CLASSED.copy()
    first = CLASSED[0].argmax(axis=1)
    seen = int(np.flatnonzero(first)[0])
    empty = np.flatnonzero(first == 0)[0]
    new[0, seen] = [1, 0, 0]  # lost
    new[0, empty] = [0, 1, 0]  # made up
    figures = Figures()
    figures_of(scale.reading, CLASSED, new, figures)
    verdict = verdict_on(scale.reading, scale.divergences(CLASSED, new), figures)
    assert verdict.answer == "places"
    objects = np.count_nonzero(first)
    assert figures.seen_same[0] == pytest.approx((objects - 1) / (objects + 1))
    assert verdict.kept.value == pytest.approx((SAMPLES - 1 + figures.seen_same[0]) / SAMPLES)
    assert "same_sequences" not in verdict.figures
    found = changes(scale.reading, CLASSED, new)
    assert found is not None
    assert found.tolist() == pytest.approx([2 / (objects + 1), *[0] * (SAMPLES - 1)])
    nothing = np.broadcast_to([1.0, 0.0, 0.0], CLASSED.shape)
    assert changes(scale.reading, nothing, nothing).tolist() == [0] * SAMPLES  # type: ignore[union-attr]


def test_a_place_that_is_not_finite_weighs_nothing_and_new_nan_is_lost() -> None:
    broken = CLASSED.copy()
    broken[:, 0] = np.nan
    scale = classed_scale(broken)
    assert np.isfinite(scale.divergences(broken, CLASSED)).all()
    assert np.isinf(scale.divergences(CLASSED, broken)).all()
