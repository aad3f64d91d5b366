"""The samples that are worth calibrating on, chosen by their features or at random."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import OptionError
from onnx_lowrank.linalg.row_selection import by_norm, decorrelated, represent
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.features import Features
from onnx_lowrank.samples.sources import pick

__all__ = ["BY_FEATURES", "RANDOM", "SELECTIONS", "check_selection", "choose_samples"]

#: drawn at random, as without any selection
RANDOM = "random"
#: rules that look at the features of samples
BY_FEATURES = {"l21": by_norm, "decorrelated": decorrelated}
SELECTIONS = (RANDOM, *BY_FEATURES)


def check_selection(by: str) -> None:
    """Refuse an unknown rule.

    Raises:
        OptionError: there is no such rule.
    """
    if by not in SELECTIONS:
        raise OptionError(f"there is no selection {by!r}; there are {', '.join(SELECTIONS)}")


def choose_samples(
    data: Dataset, count: int, by: str, seed: int, features: Callable[[], Features]
) -> tuple[npt.NDArray[np.int64], str]:
    """Choose samples.

    Where too few samples differ in their features, the rest is drawn at random.

    Args:
        data: the samples.
        count: number to choose.
        by: ``l21``, those that others are made of; ``decorrelated``, the same but no two alike;
            ``random``.
        seed: random seed of every draw.
        features: makes the features of all samples; called where they are needed.

    Returns:
        Numbers of the samples, rising, and a sentence that says how they were chosen.

    Raises:
        OptionError: there is no such rule.
        DataError, ModelError: the features cannot be made.
    """
    check_selection(by)
    total = len(data)
    if by == RANDOM or count >= total:
        return pick(total, count, seed), f"{min(count, total)} of {total} samples drawn at random"
    found = features()
    chosen = BY_FEATURES[by](represent(found.values), count)
    said = f"{len(chosen)} of {total} samples selected by {by} on {found.source}"
    if len(chosen) < count:
        others = np.setdiff1d(np.arange(total), chosen)
        drawn = others[pick(len(others), count - len(chosen), seed)]
        chosen = np.concatenate([chosen, drawn])
        said += f", {len(drawn)} more at random: the others are copies of these"
    return np.sort(chosen), said
