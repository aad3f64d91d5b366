from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg.group_problem import regularised
from onnx_lowrank.linalg.group_scores import energy_scores, random_scores


def test_plain_rankings() -> None:
    widths = [2, 1, 3]
    R = np.diag([1.0, 3.0, 5.0, 1.0, 2.0, 6.0])
    np.testing.assert_allclose(energy_scores(R, widths), [2.0, 5.0, 3.0], rtol=1e-14)
    assert list(random_scores(widths, 1)) == list(random_scores(widths, 1))
    assert list(random_scores(widths, 1)) != list(random_scores(widths, 2))


def test_the_ridge_is_in_units_of_the_mean_diagonal() -> None:
    R = np.array([[1.0, 0.5], [0.5, 5.0]])
    np.testing.assert_allclose(regularised(R, 0.1), [[1.3, 0.5], [0.5, 5.3]], rtol=1e-14)
    with pytest.raises(ValueError, match="ridge"):
        regularised(R, -1.0)
