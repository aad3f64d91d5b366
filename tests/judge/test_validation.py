from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from onnx import ModelProto, helper

from onnx_lowrank.engine.validate import validate
from onnx_lowrank.errors import DataError, ModelError, ValidationError
from onnx_lowrank.judge.checks import Accuracy, OutputCheck, Validation
from onnx_lowrank.judge.validation import _Tally, top_hits
from onnx_lowrank.runtime.outputs import looks_like_scores
from tests import fixtures_models as fm


def added(offset: Sequence[float], output: str = "y") -> ModelProto:
    """``y = x + offset``."""
    node = helper.make_node("Add", ["x", "offset"], [output], name="add")
    weights = {"offset": fm.float32(np.array(offset))}
    width = len(offset)
    return fm.build([node], {"x": ["N", width]}, {output: ["N", width]}, weights)


def check(offset: Sequence[float], x: fm.AnyArray, **options: object) -> Validation:
    """``x + offset`` against ``x``."""
    data = {"x": fm.float32(np.asarray(x)), **options}
    models = added([0.0] * len(offset)), added(offset)
    return validate(*models, data, threads=1, judge="y=kl")


def only(validation: Validation) -> OutputCheck:
    (found,) = validation.outputs
    return found


# by hand


def test_errors_by_hand() -> None:
    found = only(check([0.0, 0.3, 0.4], np.array([[3.0, 0, 0], [0, 0, 4.0]])))
    # |difference|^2 = 2 * 0.25, |reference|^2 = 25
    assert found.relative_error == pytest.approx(math.sqrt(0.5 / 25), rel=1e-6)
    assert found.snr_db == pytest.approx(10 * math.log10(50), rel=1e-6)
    assert found.max_abs_error == pytest.approx(0.4, rel=1e-6)
    one = 3 / math.sqrt(9 + 0.25)
    two = 4.4 / math.sqrt(0.09 + 4.4**2)
    assert found.cosine == pytest.approx((one + two) / 2, rel=1e-6)


def test_equal_outputs() -> None:
    result = check([0.0, 0.0], np.array([[1.0, 2.0], [0.0, 0.0]]))
    assert only(result) == OutputCheck("y", 0.0, math.inf, 1.0, 0.0, 1.0, 1.0, places=4)
    assert result.to_dict()["outputs"][0]["snr_db"] is None
    assert result.drop == 0.0


def test_agreement_by_hand() -> None:
    # the offset lifts class 5: above the winner of rows 0 and 1, not of row 2
    x = np.array([[2.0, 1, 0, 0, 0, 1.5], [0, 3, 0, 0, 0, 2.9], [9, 0, 0, 0, 0, 0], [0] * 5 + [1]])
    found = only(check([0, 0, 0, 0, 0, 1.0], x))
    assert found.top1_agreement == 0.5
    assert found.top5_agreement == 1.0


def test_top_five_by_hand() -> None:
    scores = np.array([[6.0, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]])
    assert top_hits(scores, np.array([4, 4])).tolist() == [True, True]
    assert top_hits(scores, np.array([5, 0])).tolist() == [False, False]
    found = only(check([9, 9, 9, 9, 9, 0.0], np.array([[0, 0, 0, 0, 0, 1.0]])))
    assert (found.top1_agreement, found.top5_agreement) == (0.0, 0.0)


def test_accuracy_by_hand() -> None:
    x = np.array([[1.0, 0], [1, 0], [0, 1], [0, 3]])
    result = check([0.0, 2.0], x, labels=np.array([0, 1, 1, 0]))
    assert result.accuracy is not None
    assert replace(result.accuracy, doubt="") == Accuracy("y", 4, 0.5, 0.5)
    assert result.drop == 0.0
    result = check([0.0, 2.0], x, labels=np.array([0, 0, 1, 1]))
    assert result.accuracy is not None
    assert replace(result.accuracy, doubt="") == Accuracy("y", 4, 1.0, 0.5)
    assert result.drop == 0.5
    assert result.to_dict()["accuracy"]["drop"] == 0.5


@pytest.mark.parametrize("count", [1, 16, 17, 50])
def test_labels_stay_with_their_samples_over_batches(count: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 4))
    labels = rng.integers(0, 4, count)
    result = check([0.5, 0.0, 0.0, 0.0], x, labels=labels)
    assert result.samples == count
    assert result.accuracy is not None
    assert result.accuracy.reference == pytest.approx(np.mean(x.argmax(1) == labels), abs=1e-12)
    shifted = x + np.array([0.5, 0, 0, 0])
    assert result.accuracy.new == pytest.approx(np.mean(shifted.argmax(1) == labels), abs=1e-12)


def test_without_labels_the_drop_is_disagreement() -> None:
    found = check([0.0, 2.0], np.array([[1.0, 0], [0, 1]]))
    assert found.drop == 0.5
    assert replace(found, verdict=None).drop is None
    labelled = replace(found, accuracy=Accuracy("y", 2, 0.9, 0.8))
    assert labelled.drop == pytest.approx(0.1, rel=1e-9)


@pytest.mark.parametrize(
    ("shape", "dtype", "scores"),
    [((4, 10), "f4", True), ((4, 10, 1, 1), "f4", True), ((4, 1), "f4", False),
     ((4, 10, 2), "f4", False), ((10,), "f4", False), ((4, 10), "i8", False)],
)  # fmt: skip
def test_what_looks_like_scores(shape: tuple[int, ...], dtype: str, scores: bool) -> None:
    assert looks_like_scores(np.zeros(shape, dtype)) is scores


def test_scalar_and_empty_outputs() -> None:
    tally = _Tally("y")
    tally.add([np.array(2.0, np.float32)], [np.array(3.0, np.float32)])
    tally.add([np.zeros((0, 4), np.float32)], [np.zeros((0, 4), np.float32)])
    result = tally.result()
    assert result.relative_error == pytest.approx(0.5, rel=1e-6)
    assert result.top1_agreement is None


def test_a_subset_is_drawn_by_the_seed() -> None:
    x = fm.float32(np.random.default_rng(0).standard_normal((60, 3)))
    models = added([0, 0, 0]), added([0, 0, 1.0])
    one, again, other = (
        validate(*models, {"x": x}, samples=10, seed=seed, threads=1) for seed in (0, 0, 1)
    )
    assert one == again
    assert one.samples == 10
    assert one != other


# refusals


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_fails(bad: float) -> None:
    with pytest.raises(ValidationError, match="'y' has NaN or Inf where the reference has none"):
        check([0.0, bad], np.ones((3, 2)))


def test_a_reference_that_is_not_finite_does_not_count_against_the_new() -> None:
    x = fm.float32(np.ones((3, 2)))
    result = validate(added([0.0, np.inf]), added([0.0, np.inf]), {"x": x}, threads=1)
    assert np.isfinite(only(result).relative_error)


def test_a_missing_output_fails() -> None:
    with pytest.raises(ValidationError, match=r"the new model lacks the outputs .*y"):
        validate(added([0.0, 0.0]), added([0.0, 0.0], "z"), {"x": np.ones((3, 2), np.float32)})


def test_another_shape_fails() -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], name="sum", keepdims=1)
    other = fm.build([node], {"x": ["N", 2]}, {"y": [1, 1]}, {})
    with pytest.raises(ValidationError, match=r"'y' has the shape \(1, 1\) a sample, and the orig"):
        validate(added([0.0, 0.0]), other, {"x": np.ones((3, 2), np.float32)})


def test_data_and_models_that_do_not_fit() -> None:
    two, three = added([0.0, 0.0]), added([0.0, 0.0, 0.0])
    with pytest.raises(DataError):
        validate(two, two, {"x": np.ones((4, 3), np.float32)})
    with pytest.raises(ModelError, match="cannot run the model"):
        validate(two, three, {"x": np.ones((4, 2), np.float32)})
    with pytest.raises(DataError):
        validate(two, two, {"x": np.ones((4, 2), np.float32), "labels": np.zeros(3, np.int64)})
