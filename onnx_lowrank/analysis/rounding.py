"""What int8 costs a layer or a chain: the one place that knows how the quantizer rounds.

ONNX Runtime's quantizer gives every output channel of a weight a scale of its own, and every tensor
between operators one scale for all its channels. A scale ``s`` puts numbers off by noise of the
variance ``s^2 / 12`` (Widrow 1996). With ``z`` the input of a step ``W``, and ``B`` all that comes
behind it,

    sum_n |B_n|^2 s_n^2 / 12 * sum_j E[z_j^2],       s_n = 2 max_j |W_nj| / 128      its weights
    s^2 / 12 * |B W|^2,                              s = range of z / 255            its input

Weights count seven bits, as processors without instructions for int8 have them. The second line is
for what lies between the steps of a chain alone: the input of a layer is rounded whatever becomes
of it. Both are large where terms of a chain cancel each other, as those of cp often do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Stage

__all__ = ["rounding_error"]

Array = npt.NDArray[np.floating[Any]]

#: steps of a weight of seven bits, and of a tensor of eight, from end to end
_WEIGHT, _TENSOR = 128, 255
#: standard deviations from the mean that the values of a channel reach
_REACH = 6.0


def rounding_error(stage: Stage, chain: Chain, moments: Moments) -> float:
    """Relative response error of ``chain`` in the place of ``stage`` that int8 adds.

    Args:
        stage: the layer.
        chain: what takes its place; itself as a chain of one stage, for what it loses so.
        moments: of its input.

    Returns:
        Noise of the response, as a part of its variance; 0 for chains with steps of other kinds,
        of which nothing is known, and for lookups, which round their table alone.
    """
    steps = [s for s in chain.stages if isinstance(s, Stage)]
    if moments.one_hot or len(steps) < len(chain.stages):
        return 0.0
    energy = moments.energy(stage.matrices)
    if not energy > 0:
        return 0.0
    noise = 0.0
    for place, step in enumerate(steps):
        mean, variance = _inputs(stage, Chain(tuple(steps[:place])) if place else None, moments)
        behind = _gains(stage, steps[place + 1 :], moments)
        step_of = 2 * np.abs(step.weight).reshape(step.outputs, -1).max(1) / _WEIGHT
        taps = np.prod(step.weight.shape[2:]) / (1 if place else np.prod(stage.weight.shape[2:]))
        power = (mean**2 + variance).reshape(step.groups, -1).sum(1) * taps
        heard = np.repeat(power, step.outputs // step.groups)
        noise += float(np.sum(behind * step_of**2 / 12 * heard))
        if place:
            reach = _REACH * np.sqrt(variance)
            span = max(np.max(mean + reach), 0) - min(np.min(mean - reach), 0)
            noise += float(
                (span / _TENSOR) ** 2 / 12 * np.sum(_gains(stage, steps[place:], moments))
            )
    return noise / energy


def _inputs(stage: Stage, before: Chain | None, moments: Moments) -> tuple[Array, Array]:
    """Mean and variance of what a step reads: elements of the layer's patches, or channels."""
    groups, _, patch = stage.matrices.shape
    mean = np.zeros((groups, patch)) if moments.mean is None else moments.mean
    if before is None:
        if moments.covariance is None:
            return mean.reshape(-1), np.ones(groups * patch)
        return mean.reshape(-1), np.einsum("gdd->gd", moments.covariance).reshape(-1)
    rows = _on_patches(before.dense(groups), stage.weight.shape[2:])
    product = rows if moments.covariance is None else rows @ moments.covariance
    variance = np.sum(product * rows, axis=2)
    return np.einsum("gnd,gd->gn", rows, mean).reshape(-1), np.maximum(variance, 0).reshape(-1)


def _on_patches(kernel: Array, taps: tuple[int, ...]) -> Array:
    """Kernel ``(groups, n, c, *kernel)`` as rows ``(groups, n, d)`` over the layer's patches.

    Along axes that it is narrower on it reads the tap in the middle.
    """
    rows = np.zeros((*kernel.shape[:3], *taps))
    place = tuple(
        slice(None) if own == whole else slice(whole // 2, whole // 2 + 1)
        for own, whole in zip(kernel.shape[3:], taps, strict=True)
    )
    rows[(slice(None),) * 3 + place] = kernel
    return rows.reshape(*kernel.shape[:2], -1)


def _gains(stage: Stage, steps: list[Stage], moments: Moments) -> Array:
    """Sum of squares that each channel in front of some steps sends to the outputs."""
    if not steps:
        ones = np.ones(stage.outputs)
        weighed = moments.outputs
        return ones if weighed is None else np.sum(weighed.weighed(np.diag(ones), 0) ** 2, axis=0)
    kernel = Chain(tuple(s.with_bias(None) for s in steps)).dense(stage.groups)
    if moments.outputs is not None:
        kernel = moments.outputs.weighed(kernel, 1)
    axes = (1, *range(3, kernel.ndim))
    gains: Array = np.sum(np.square(kernel), axis=axes).reshape(-1)
    return gains
