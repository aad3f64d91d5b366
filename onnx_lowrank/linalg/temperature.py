"""Class probabilities from scores, by one temperature fitted to labels.

    p = softmax(z / T),    T = argmin_T  - sum_i log p_i[label_i]

where ``z`` are logits, or the logarithms of scores that are probabilities.

Reference:
    Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

__all__ = ["calibrated"]

#: range of the logarithm of ``1 / T``
_RANGE = (-4.0, 4.0)
#: largest difference of expected and true accuracy, in standard errors
_BELIEVABLE = 3.0


def calibrated(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> npt.NDArray[np.float32] | None:
    """Calibrate class probabilities by labels.

    Args:
        scores: logits or probabilities, ``(samples, classes)``.
        labels: class numbers, ``(samples,)``.

    Returns:
        Probabilities ``(samples, classes)``; None where no temperature makes the expected accuracy
        agree with the true one, or the labels are not class numbers.
    """
    rows, count = np.arange(len(scores)), scores.shape[1]
    whole = labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < count
    if not whole or not np.isfinite(scores).all():
        return None
    logits = scores.astype(np.float32)
    if logits.min() >= 0 and np.allclose(logits.sum(1), 1, rtol=0, atol=1e-3):
        logits = np.log(np.maximum(logits, np.float32(1e-12)))
    logits -= logits.max(1, keepdims=True)

    def surprise(cooler: float) -> float:
        scaled = logits * np.float32(np.exp(cooler))
        return float(np.mean(np.log(np.exp(scaled).sum(1)) - scaled[rows, labels]))

    found = np.exp(logits * np.float32(np.exp(minimize_scalar(surprise, bounds=_RANGE).x)))
    found /= found.sum(1, keepdims=True)
    first = found.max(1).astype(float)
    off = first.mean() - np.mean(logits.argmax(1) == labels)
    error = np.sqrt(np.sum(first * (1 - first))) / len(first)
    return found if abs(off) <= _BELIEVABLE * error + 1 / len(first) else None
