"""Labels as class numbers, and a check that an accuracy by them says something about a model.

Labels may be anything where a metric of the user reads them. Where accuracy is counted they must be
numbers of the classes that the output has, and the original must do better by them than always
guessing the most frequent one: with labels of another data set, in another order, or off by one,
*any* compressed model would keep the accuracy of the original. The check is a sign test at 5 % on
the samples where only one of the two, the original or the guess, is right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from onnx_lowrank.errors import DataError

__all__ = ["class_ids", "doubt", "not_class_numbers", "refuse_doubt"]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Classes = npt.NDArray[np.integer[Any]]

#: significance level of the test that the original beats guessing
_LEVEL = 0.05
#: significance level of the test that labels are off by one
_SHIFT_LEVEL = 1e-3
#: number of values that a message lists
_LISTED = 4


def not_class_numbers(labels: Array) -> str:
    """The reason why labels cannot be class numbers; empty where they can."""
    kind = labels.dtype.kind
    if kind in "iub" and labels.size == len(labels):
        return ""
    found = "text" if kind in "US" else f"{labels.dtype.name} of the shape {labels.shape}"
    return (
        f"the labels are {found}, and an accuracy needs one class number for each sample; write "
        "class numbers (numpy.argmax over axis 1 makes them of one-hot labels), or give a metric "
        "that reads the labels as they are"
    )


def class_ids(labels: Array, classes: int, output: str, predicted: Classes) -> Ids:
    """The labels as class numbers, ``(samples,)``.

    Args:
        labels: a label for each sample, ``(samples,)`` or with further axes of length 1.
        classes: number of classes of the output.
        output: name of the output, for messages.
        predicted: classes that the original gives the samples, ``(samples,)``.

    Raises:
        DataError: the labels are not class numbers, or not those of this output.
    """
    if said := not_class_numbers(labels):
        raise DataError(said)
    ids = labels.reshape(-1).astype(np.int64)
    strange = np.unique(ids[(ids < 0) | (ids >= classes)])
    if len(strange):
        listed = ", ".join(map(str, strange[:_LISTED])) + (
            ", ..." if len(strange) > _LISTED else ""
        )
        raise DataError(
            f"the labels hold {listed}, but output {output!r} has {classes} classes, 0 to "
            f"{classes - 1}"
            + (_shift(ids, predicted) or "; give labels of these classes, or leave labels out")
        )
    return ids


def doubt(ids: Ids, predicted: Classes) -> str:
    """The reason why an accuracy by these labels says nothing about the original; else empty.

    Args:
        ids: class numbers of the samples by the labels, ``(samples,)``.
        predicted: class numbers of the samples by the original, ``(samples,)``.
    """
    values, counts = np.unique(ids, return_counts=True)
    if len(values) == 1:
        return f"all {len(ids)} labels are {values[0]}, so a constant answer is always right"
    common = values[counts.argmax()]
    right, guessed = predicted == ids, ids == common
    if _surpasses(right, guessed, _LEVEL):
        return ""
    return (
        f"the original is right in {int(right.sum())} of {len(ids)} samples, which shows no more "
        f"than always guessing class {common} does ({int(guessed.sum())})"
        + (_shift(ids, predicted) or ": the labels may be of other classes or other samples")
    )


def refuse_doubt(ids: Ids, predicted: Classes) -> None:
    """Refuse a bound on accuracy where accuracy says nothing about the original.

    Raises:
        DataError: :func:`doubt` gives a reason.
    """
    if said := doubt(ids, predicted):
        raise DataError(
            f"{said}; any model would keep a bound on accuracy: check the labels and how the "
            "inputs are prepared, give more samples, or bound the agreement or your own metric"
        )


def _surpasses(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_], level: float) -> bool:
    """Whether the first hits are significantly more than the second, by the sign test."""
    won, lost = int(np.sum(these & ~those)), int(np.sum(those & ~these))
    return won > lost and float(bdtrc(won - 1, won + lost, 0.5)) <= level


def _shift(ids: Ids, predicted: Classes) -> str:
    """A clause for the message where labels are off by one (counted from 1, not 0); else empty."""
    right = predicted == ids
    for step, text in ((-1, "labels - 1"), (1, "labels + 1")):
        moved = predicted == ids + step
        if moved.sum() >= 2 * right.sum() and _surpasses(moved, right, _SHIFT_LEVEL):
            return (
                f": {text} agree with the original in {moved.mean():.1%} of the samples, these in "
                f"{right.mean():.1%}, so they are off by one; give {text}"
            )
    return ""
