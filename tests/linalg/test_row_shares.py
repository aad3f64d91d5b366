from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.linalg.row_shares import row_shares
from tests.support import quick, rng

counted = st.lists(st.integers(0, 50), min_size=1, max_size=40)


@quick(200)
@given(counted)
def test_no_row_is_lost_and_no_rarer_one_comes_first(counts: list[int]) -> None:
    shares = row_shares(np.array(counts))
    assert shares.min() > 0
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    order = np.argsort(counts, kind="stable")
    assert (np.diff(shares[order]) >= -1e-15).all()
    # rule of succession: a new row is as likely as one in (n + 1), or likelier
    total = sum(counts)
    assert shares.min() * len(counts) >= 1 / (total + 1) * (1 - 1e-12)


def test_without_readings_all_rows_count_alike() -> None:
    np.testing.assert_array_equal(row_shares(np.zeros(8, np.int64)), np.full(8, 1 / 8))


def left_out(counts: npt.NDArray[np.float64], discount: float) -> float:
    """Log-likelihood where each reading in turn is foreseen from the others, as the bound has it.

    What discounts give up of rows read once and left out goes to rows not seen, at no cost that
    depends on the discount but its sum.
    """
    seen = counts[counts > 1]
    once = np.count_nonzero(counts == 1)
    return float((seen * np.log(seen - 1 - discount)).sum() + once * np.log(discount))


def test_the_discount_is_that_of_most_left_out_likelihood() -> None:
    """Where rows are read once or twice alone, the closed form is the maximum."""
    counts = np.repeat([1.0, 2.0, 0.0], [30, 20, 50])
    grid = np.linspace(0.01, 0.99, 981)
    best = grid[np.argmax([left_out(counts, d) for d in grid])]
    shares = row_shares(counts.astype(np.int64))
    total = counts.sum()
    discount = (2 - (shares[counts == 2][0] - shares[counts == 0][0]) * total).item()
    assert discount == pytest.approx(best, abs=2e-3)


def test_shares_foretell_other_readings_better_than_counts_with_one_added() -> None:
    rows = 2000
    true = 1 / np.arange(1, rows + 1)
    true /= true.sum()
    counts, held = (np.bincount(rng(s).choice(rows, 3000, p=true), minlength=rows) for s in (0, 1))
    added = (counts + 1) / (counts + 1).sum()
    ours = float(held @ np.log(row_shares(counts)))
    assert ours > float(held @ np.log(added)) + 100
