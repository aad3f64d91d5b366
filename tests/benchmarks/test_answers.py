"""What users look at, on arrays small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import rankdata

from benchmarks.answers import (
    exact,
    pair_correlation,
    part_within,
    read_lines,
    sentence_vectors,
    snr_db,
)
from tests.support import rng


def test_snr() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert snr_db(reference, reference) == math.inf
    assert snr_db(reference, 1.1 * reference) == pytest.approx(20, abs=1e-4)
    assert snr_db(reference, 0 * reference) == pytest.approx(0, abs=1e-9)


def test_part_within() -> None:
    reference = np.zeros(4)
    assert part_within(reference, np.array([0.0, 0.02, -0.02, 0.021]), 0.02) == 0.75


def test_lines() -> None:
    characters = ["none", "a", "b", "\u3000"]
    classes = np.array([[1, 1, 0, 1, 2], [0, 2, 2, 9, 1], [3, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert read_lines(classes, characters) == ["aab", "ba", "\u3000", ""]


def test_lines_are_exact_but_for_spaces() -> None:
    assert exact(["ab", "c", "d"], ["a b", "c", "x"]) == pytest.approx(2 / 3, abs=1e-12)


def test_sentences_do_without_padding() -> None:
    states = np.array([[[3.0, 0.0], [3.0, 8.0], [90.0, 90.0]]])
    found = sentence_vectors(states, np.array([[1, 1, 0]]))
    np.testing.assert_allclose(found, [[0.6, 0.8]], atol=1e-12)


def test_correlation_of_pairs_is_that_of_ranks() -> None:
    vectors, likeness = rng(0).standard_normal((20, 5)), rng(1).standard_normal(10)
    cosines = [one @ other for one, other in zip(vectors[:10], vectors[10:], strict=True)]
    expected = 100 * np.corrcoef(rankdata(cosines), rankdata(likeness))[0, 1]
    assert pair_correlation(vectors, likeness) == pytest.approx(expected, abs=1e-9)
