"""What users of a model look at, from arrays of its outputs alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from benchmarks.nets import Array

__all__ = ["exact", "pair_correlation", "part_within", "read_lines", "sentence_vectors", "snr_db"]

Classes = npt.NDArray[np.integer]


def snr_db(reference: Array, new: Array) -> float:
    """Signal-to-noise ratio of ``new`` in dB, infinite where both are equal."""
    signal, noise = (np.sum(np.square(x), dtype=np.float64) for x in (reference, new - reference))
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal / noise))


def part_within(reference: Array, new: Array, tolerance: float) -> float:
    """Part of the numbers that differ by ``tolerance`` at most."""
    return float(np.mean(np.abs(new.astype(np.float64) - reference) <= tolerance))


def read_lines(classes: Classes, characters: Sequence[str]) -> list[str]:
    """Lines of text from the likeliest class at each position, without spaces.

    Equal neighbours are one character, and class 0 stands for none (connectionist temporal
    classification, Graves et al. 2006).

    Args:
        classes: of each line at each position, (lines, positions).
        characters: by class; classes beyond stand for a space.
    """
    first = np.diff(classes, axis=1, prepend=-1) != 0
    lines = []
    for row, new in zip(classes, first & (classes > 0), strict=True):
        known = (characters[k] for k in row[new] if k < len(characters))
        lines.append("".join(known).replace(" ", ""))
    return lines


def exact(lines: Sequence[str], texts: Sequence[str]) -> float:
    """Part of the lines that are what was written, spaces aside."""
    pairs = zip(lines, texts, strict=True)
    return float(np.mean([line == str(text).replace(" ", "") for line, text in pairs]))


def sentence_vectors(states: Array, mask: Array) -> Array:
    """The direction of each sentence: the mean of its tokens' states, of length 1.

    Args:
        states: of tokens, (sentences, tokens, width).
        mask: 1 for a token and 0 for padding, (sentences, tokens).
    """
    sums: Array = (states * mask[..., None]).sum(1)
    directions: Array = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    return directions


def pair_correlation(vectors: Array, likeness: Array) -> float:
    """100 times Spearman's correlation of cosines with what people said of pairs.

    Args:
        vectors: of length 1, (2 pairs, width): row i and row i + pairs are a pair.
        likeness: of each pair, (pairs,).
    """
    one, other = np.split(vectors, 2)
    return 100 * float(spearmanr((one * other).sum(1), likeness)[0])
