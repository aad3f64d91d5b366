"""Bases of channels that are diagonal in frequency, in place of principal components.

A covariance ``R (n, n)`` that is circulant, ``R[i, j] = r[(i - j) mod n]``, is decorrelated by the
Fourier basis: for each frequency ``f`` the pair ``cos, sin (2 pi f i / n)`` spans two of its
principal components. For any other covariance it is a choice among few: it takes about ``n``
numbers to name where principal components take ``n^2``. Two freedoms cost next to nothing:

* the phase of each pair, turned to its own two principal components: a cut through a pair keeps
  the better half, and a whole pair is the same, circulant, projection at any phase;
* the order of the channels, which a network does not care about, and their signs: first by
  circular seriation, the angle in the plane of the second and third eigenvectors of the
  correlations, signs by the first; then two channels at a time change places while the permuted
  covariance ``P`` comes nearer to ``T``, its own part within frequencies (best swap of
  ``<P, T>`` for a given ``T``, then ``T`` for the given order, in turn: ``||T||`` never falls).

On 14 convolutions of four trained networks the error of the outputs, averaged over ranks, fell to
0.95 of the plain basis by phases, to 0.82 by seriation and to 0.75 by swaps; principal components
stand at 0.35: a basis of few numbers, but not a good one.

Reference:
    Gray 2006, Toeplitz and circulant matrices: a review; Recanati, Kerdreux & d'Aspremont 2018,
    Reconstructing latent orderings by spectral clustering (circular seriation); Wang, Xu, Xu & Tao
    2017, Beyond filters: compact feature map for portable deep model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["FourierBasis", "fourier_basis"]

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]

#: largest number of changes of target in the search for an order
_TARGETS = 6

#: largest number of channels with which pairs are swapped; twice as many take a second
_SWAPPED = 128


@dataclass(frozen=True)
class FourierBasis:
    """An orthonormal basis of ``n`` channels, strongest direction first.

    ``columns[order[i], j] = signs[order[i]] a_j cos(2 pi f_j i / n + phase_j)`` with ``a_j`` for
    unit length: the first r directions are ``n`` places, ``n`` signs and 2 r numbers, where r
    principal components are ``n r`` numbers. A rank that :meth:`is_circulant` needs no list of
    directions: the ``n`` numbers of :meth:`generator` are the projection.

    Attributes:
        columns: ``(n, n)``.
        energies: ``diag(F^T R F)``, falling, ``(n,)``.
        frequencies: ``f_j``, ``(n,)``.
        order: the channel at each place, ``(n,)``.
        signs: sign of each channel, 1 or -1, ``(n,)``.
    """

    columns: Array
    energies: Array
    frequencies: Labels
    order: Labels
    signs: Array

    def is_circulant(self, rank: int) -> bool:
        """Whether the first ``rank`` directions contain both or none of each frequency's pair."""
        kept = set(self.frequencies[:rank].tolist())
        return kept.isdisjoint(self.frequencies[rank:].tolist())

    def generator(self, rank: int) -> Array:
        """First column ``(n,)`` of the projection onto ``rank`` directions, in :attr:`order`.

        Raises:
            ValueError: the projection is not circulant at this rank.
        """
        if not self.is_circulant(rank):
            raise ValueError(f"rank {rank} separates the two directions of one frequency")
        placed = (self.signs[:, None] * self.columns[:, :rank])[self.order]
        column: Array = placed @ placed[0]
        return column


def fourier_basis(covariance: Array, seriate: bool = True) -> FourierBasis:
    """The Fourier directions of ``covariance (n, n)``, phases turned, by falling energy.

    Args:
        covariance: symmetric positive semi-definite.
        seriate: whether to search for an order and signs of the channels; they are used only if
            that lowers the mean error over all ranks.
    """
    count = len(covariance)
    arrangements: list[tuple[Labels, Array]] = [(np.arange(count), np.ones(count))]
    if seriate and count > 2:
        first = _seriated(covariance)
        arrangements.append(first)
        if count <= _SWAPPED:
            arrangements.append(_rearranged(covariance, *first))
    found = [_directions(covariance, order, signs) for order, signs in arrangements]
    # mean over ranks of the energy explained
    scores = [float(np.sum(np.cumsum(f.energies))) for f in found]
    return found[int(np.argmax(scores))]


def _directions(covariance: Array, order: Labels, signs: Array) -> FourierBasis:
    """Principal components of the arranged covariance within each frequency."""
    count = len(covariance)
    placed, frequencies = _fourier(count)
    arranged = _arranged(covariance, order, signs)
    energies, turned = np.zeros(count), np.zeros((count, count))
    for f in range(count // 2 + 1):
        at = np.flatnonzero(frequencies == f)
        pair = placed[:, at]
        energies[at], rotation = np.linalg.eigh(pair.T @ arranged @ pair)
        turned[:, at] = pair @ rotation
    strongest = np.argsort(-energies, kind="stable")
    columns = np.zeros((count, count))
    columns[order] = signs[order, None] * turned[:, strongest]
    return FourierBasis(columns, energies[strongest], frequencies[strongest], order, signs)


def _fourier(count: int) -> tuple[Array, Labels]:
    """The real orthonormal Fourier basis ``(n, n)``, and the frequency of each column."""
    frequencies = (np.arange(count) + 1) // 2
    angles = 2 * np.pi * np.outer(np.arange(count), frequencies) / count
    sines = np.arange(count) % 2 == 0  # except column 0, the constant
    sines[0] = False
    columns = np.where(sines, np.sin(angles), np.cos(angles))
    return columns / np.linalg.norm(columns, axis=0), frequencies


def _arranged(covariance: Array, order: Labels, signs: Array) -> Array:
    signed: Array = (covariance * np.outer(signs, signs))[np.ix_(order, order)]
    return signed


def _seriated(covariance: Array) -> tuple[Labels, Array]:
    """Order and signs by the three leading eigenvectors of the correlations."""
    scale = np.sqrt(np.maximum(np.diag(covariance), np.finfo(np.float64).tiny))
    vectors = np.linalg.eigh(covariance / np.outer(scale, scale))[1]
    signs = np.where(vectors[:, -1] < 0, -1.0, 1.0)
    angles = np.arctan2(signs * vectors[:, -3], signs * vectors[:, -2])
    return np.argsort(angles, kind="stable"), signs


def _rearranged(covariance: Array, order: Labels, signs: Array) -> tuple[Labels, Array]:
    """Change signs and places while that brings the covariance nearer to its own target.

    No change lowers ``<R, T>`` for the target ``T`` of the arrangement before, nor ``||T||``.
    """
    columns, frequencies = _fourier(len(order))
    within = frequencies[:, None] == frequencies
    order, signs = order.copy(), signs.copy()
    for _ in range(_TARGETS):
        before = order.copy(), signs.copy()
        target = _target(_arranged(covariance, order, signs), columns, within)
        signs[order] *= _flips(_arranged(covariance, order, signs) * target)
        arranged = _arranged(covariance, order, signs)
        target = _target(arranged, columns, within)
        order = order[_swaps(arranged, target)]
        if np.array_equal(order, before[0]) and np.array_equal(signs, before[1]):
            break
    return order, signs


def _swaps(arranged: Array, target: Array) -> Labels:
    """Places that raise ``sum_ij arranged[p_i, p_j] target[i, j]``, by the best swap each time."""
    count = len(target)
    places = np.arange(count)
    own = np.diag(target)
    for _ in range(2 * count):
        placed = arranged[np.ix_(places, places)]
        cross, there = placed @ target, np.diag(placed)
        # a swap's gain over all other places, doubled by symmetry; then its own two places
        gains = cross + cross.T - np.diag(cross)[:, None] - np.diag(cross)
        gains -= (placed - there[:, None]) * (own[:, None] - target)
        gains -= (there - placed) * (target - own)
        gains = 2 * gains + (there - there[:, None]) * (own[:, None] - own)
        best = int(np.argmax(gains))
        i, j = divmod(best, count)
        if gains[i, j] <= 1e-12 * abs(float(np.trace(cross))):
            break
        places[[i, j]] = places[[j, i]]
    return places


def _target(arranged: Array, columns: Array, within: npt.NDArray[np.bool_]) -> Array:
    """The part of a covariance within frequencies."""
    target: Array = columns @ (within * (columns.T @ arranged @ columns)) @ columns.T
    return target


def _flips(agreement: Array) -> Array:
    """Signs that raise ``sum_ij s_i s_j agreement[i, j]``, one channel at a time."""
    signs = np.ones(len(agreement))
    agreement = agreement - np.diag(np.diag(agreement))
    for _ in range(len(signs)):
        before = signs.copy()
        for i in range(len(signs)):
            if signs[i] * float(agreement[i] @ signs) < 0:
                signs[i] *= -1
        if np.array_equal(signs, before):
            break
    return signs
