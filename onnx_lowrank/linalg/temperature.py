"""Class probabilities from scores, by one temperature fitted to labels.

    p = softmax(z / T),    T = argmin_T  - sum_i log p_i[label_i]

of logits, or of the logarithms of scores that are probabilities already.

Reference:
    Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

__all__ = ["calibrated"]

#: of the logarithm of the temperature
_RANGE = (-4.0, 4.0)
#: standard errors that the expected accuracy may be off by
_BELIEVABLE = 3.0


def calibrated(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> npt.NDArray[np.float32] | None:
    """Probabilities of classes that labels bear out.

    Args:
        scores: ``(samples, classes)``, logits or probabilities.
        labels: ``(samples,)``, places among the classes.

    Returns:
        ``(samples, classes)``; None where no temperature makes the accuracy that they foretell
        that which is there, or the labels are no places.
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
