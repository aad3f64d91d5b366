from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.linalg.temperature import calibrated
from tests.support import Array, rng


def drawn(temperature: float, count: int = 4000, classes: int = 5) -> tuple[Array, Array, Array]:
    """Logits, the probabilities that they stand for at a temperature, labels drawn by these."""
    random = rng(7)
    logits = 3 * random.standard_normal((count, classes))
    chances = np.exp(logits / temperature)
    chances /= chances.sum(1, keepdims=True)
    labels = (chances.cumsum(1) < random.random((count, 1))).sum(1)
    return logits, chances, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_probabilities_are_those_that_drew_the_labels(temperature: float) -> None:
    logits, chances, labels = drawn(temperature)
    found = calibrated(logits, labels)
    assert found is not None
    assert np.abs(found - chances).mean() < 0.01
    assert np.allclose(found.sum(1), 1, rtol=0, atol=1e-5)
    assert abs(found.max(1).mean() - np.mean(logits.argmax(1) == labels)) < 0.02


def test_probabilities_are_taken_for_what_they_are() -> None:
    _, chances, labels = drawn(1.0)
    found = calibrated(chances.astype(np.float32), labels)
    assert found is not None
    assert np.abs(found - chances).mean() < 0.01


def test_scores_of_any_offset() -> None:
    logits, _, labels = drawn(2.0)
    plain = calibrated(logits, labels)
    shifted = calibrated(logits + np.arange(len(logits))[:, None] % 7, labels)
    assert plain is not None
    assert shifted is not None
    assert np.abs(plain - shifted).max() < 1e-3


def test_what_no_temperature_explains() -> None:
    logits, _, labels = drawn(1.0)
    wrong = np.arange(4000) % 2 == 0
    sure = np.eye(5)[np.arange(4000) % 5] * np.where(wrong, 50, 1)[:, None]
    assert calibrated(sure, (np.arange(4000) + wrong) % 5) is None
    assert calibrated(logits, labels + 1) is None  # one class too many
    assert calibrated(logits, labels - 1) is None
    assert calibrated(logits, labels.astype(float)) is None
    assert calibrated(np.where(labels[:, None] == 2, np.nan, logits), labels) is None
