"""Atoms: channels as numbers that are tied together (union-find), and why some must stay.

Reference: Tarjan 1975, Efficiency of a good but not linear set union algorithm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Atoms", "IntArray"]

IntArray = npt.NDArray[np.int64]


class Atoms:
    """Union-find over channels, with the reasons why some must stay."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}
        self._fixed: dict[str, int] = {}
        self._is_fixed: set[int] = set()

    def fresh(self, count: int) -> IntArray:
        """Make new atoms that are tied to nothing, ``(count,)``."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def fixed(self, reason: str) -> int:
        """The atom of all positions that belong to no channel for this reason."""
        if reason not in self._fixed:
            atom = int(self.fresh(1)[0])
            self._fixed[reason] = atom
            self._is_fixed.add(atom)
            self._reason[atom] = reason
        return self._fixed[reason]

    def root(self, atom: int) -> int:
        """The atom that represents all atoms tied to ``atom``."""
        top = atom
        while self._parent[top] != top:
            top = self._parent[top]
        while self._parent[atom] != top:
            self._parent[atom], atom = top, self._parent[atom]
        return top

    def roots(self, labels: IntArray) -> IntArray:
        """The root of each label."""
        unique, inverse = np.unique(labels, return_inverse=True)
        found = np.array([self.root(int(a)) for a in unique], np.int64)
        return found[inverse].reshape(labels.shape)

    def tie(self, first: IntArray, second: IntArray) -> None:
        """Tie the atoms of two arrays, position by position, with broadcasting."""
        pairs = np.stack([x.reshape(-1) for x in np.broadcast_arrays(first, second)])
        for a, b in np.unique(pairs, axis=1).T.tolist():
            self._tie(a, b)

    def freeze(self, labels: IntArray, reason: str) -> None:
        """Record that channels must stay; the first reason counts."""
        for atom in np.unique(labels).tolist():
            self._reason.setdefault(self.root(atom), reason)

    def reason(self, atom: int) -> str | None:
        """The reason why a channel must stay; None if it may go."""
        return self._reason.get(self.root(atom))

    def is_fixed(self, atom: int) -> bool:
        """Whether the atom stands for positions that belong to no channel."""
        return atom in self._is_fixed

    def _tie(self, first: int, second: int) -> None:
        for a, b in ((first, second), (second, first)):
            if a in self._is_fixed:
                self._reason.setdefault(self.root(b), self._reason[a])
                return
        a, b = sorted((self.root(first), self.root(second)))
        if a != b:
            self._parent[b] = a
            if b in self._reason:
                self._reason.setdefault(a, self._reason.pop(b))
