"""attention_rank: narrower heads, each in a basis in which its channels can be left out.

Before:      softmax(c q k^T + mask) v, then Wo      heads of width d
             (or the operator Attention, which is all of that but Wo)
After:       the same nodes, with heads of widths r (queries and keys) and s (values)
Conditions:  queries, keys and values are made by layers, with nothing but moves (Reshape,
             Transpose, Split, Slice ...) and factors between a layer and the product; one layer
             reads what is mixed. All heads of a block keep the same width. Heads may share keys
             and values; keys may come from another sequence; masks and additions to the scores
             stay. The factor c stays that of the old width. Keys and values that the operator
             Attention keeps for the next call stay as wide as they are.
Numbers:     widths are multiples of 8, of 4 below 16; the planner chooses them for every block,
             under one budget with pruning and factorization

Formula:     q^T k = (Tq q)^T (Tk k),   W z = (W T^-1) (T z)   for bases with Tq^T Tk = I
             A score's error e of key j reaches the output as  p_j (v_j - z) e  with the softmax's
             p: so keys are weighed by  K = E[J^T J],  J = Wo sum_j p_j (v_j - z) k_j^T,  in which
             what is the same for all keys does not count. Tq and Tk come from the SVD of
             E[q q^T]^(1/2) K^(1/2), T from the principal directions of Wo z; a head's first
             channels are kept, and Wo is solved again.

Reference:   Eckart & Young 1936; Martens & Grosse 2015 (Kronecker-factored curvature); Vaswani et
             al. 2017; Michel, Levy & Neubig 2019, Are sixteen heads really better than one?
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.linalg.attention_bases import score_bases, value_basis
from onnx_lowrank.passkit.base import HeadNarrowing

__all__ = ["AttentionRank"]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class AttentionRank(HeadNarrowing):
    """Narrower heads, each in a basis in which its channels can be left out."""

    name: ClassVar[str] = "attention_rank"

    def scores(self, queries: Array, keys: Array) -> tuple[Array, Array, Array]:
        """See the module."""
        return score_bases(queries, keys)

    def values(self, gram: Array, covariance: Array) -> Array:
        """See the module."""
        return value_basis(gram, covariance)
