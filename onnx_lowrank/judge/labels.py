"""Labels as class numbers, and whether an accuracy by them says anything of a model.

Labels may be anything where a metric of the user reads them. Where classes are counted they must be
numbers of the classes that the output has, and the original must do better by them than somebody
who always guesses the most frequent one: with labels of another data set, in another order, or off
by one, *any* compressed model keeps what the original has. Of samples on which only one of the two
is right, the original must have so many that a fair coin would give it these in one case of
twenty at the most (the sign test).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtrc

from onnx_lowrank.errors import DataError

__all__ = ["class_ids", "doubt", "no_numbers", "refuse_doubt"]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Classes = npt.NDArray[np.integer[Any]]

#: chance that a guess is taken for knowledge
_LEVEL = 0.05
#: chance that labels are said to be off by one where they are not
_SURE = 1e-3
#: values that a message lists
_LISTED = 4


def no_numbers(labels: Array) -> str:
    """Why labels cannot be class numbers at all; empty where they can."""
    kind = labels.dtype.kind
    if kind in "iub" and labels.size == len(labels):
        return ""
    found = "text" if kind in "US" else f"{labels.dtype.name} of the shape {labels.shape}"
    return (
        f"the labels are {found}; an accuracy needs one class number a sample, as numpy.argmax of "
        "one-hot labels over axis 1 gives: write these, or give a metric that reads the labels as "
        "they are"
    )


def class_ids(labels: Array, classes: int, output: str, predicted: Classes) -> Ids:
    """The labels as numbers of classes.

    Args:
        labels: one for each sample, ``(samples,)`` or with further axes of length 1.
        classes: how many the output has.
        output: its name, for messages.
        predicted: classes that the original gives the samples, ``(samples,)``.

    Raises:
        DataError: the labels are no class numbers, or not those of this output.
    """
    if said := no_numbers(labels):
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
    """Why an accuracy by these labels says nothing of the original; empty where it does.

    Args:
        ids: class numbers, ``(samples,)``.
        predicted: classes that the original gives, ``(samples,)``.
    """
    values, counts = np.unique(ids, return_counts=True)
    if len(values) == 1:
        return f"all {len(ids)} labels are {values[0]}, so whoever guesses that is never wrong"
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
    """Refuse a bound on accuracy where accuracy says nothing.

    Raises:
        DataError: :func:`doubt` has something to say.
    """
    if said := doubt(ids, predicted):
        raise DataError(
            f"{said}; a bound on accuracy would let any model pass: check the labels and how the "
            "inputs are prepared, give more samples, or bound the agreement or a metric of yours"
        )


def _surpasses(these: npt.NDArray[np.bool_], those: npt.NDArray[np.bool_], level: float) -> bool:
    """Whether the first hits are more than the second, by the sign test."""
    won, lost = int(np.sum(these & ~those)), int(np.sum(those & ~these))
    return won > lost and float(bdtrc(won - 1, won + lost, 0.5)) <= level


def _shift(ids: Ids, predicted: Classes) -> str:
    """What to say where labels are off by one, as where one tool counts from 0 and one from 1."""
    right = predicted == ids
    for step, text in ((-1, "labels - 1"), (1, "labels + 1")):
        moved = predicted == ids + step
        if moved.sum() >= 2 * right.sum() and _surpasses(moved, right, _SURE):
            return (
                f": {text} agree with the original in {moved.mean():.1%} of the samples, these in "
                f"{right.mean():.1%}, so they are off by one; give {text}"
            )
    return ""
