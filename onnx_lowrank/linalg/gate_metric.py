"""The metric of the gates of a recurrent node: errors of gates as its next state feels them.

An error ``e`` of the gates' inputs ``a_t`` moves the state ``h_t`` by ``dh/da e``, and a gate that
is saturated moves nothing, however large its input is. So the errors of row i count with

    m_i = E[(dh / da_i)^2]

averaged over the data: the diagonal of the Gauss-Newton matrix of one step.

Reference:
    LeCun, Denker & Solla 1990, Optimal brain damage (diagonal curvature).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GateMetric"]

Array = npt.NDArray[np.floating[Any]]

#: least weight of a gate, as a part of the mean weight
_LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class GateMetric:
    """A diagonal metric of outputs; see the module.

    Attributes:
        weights: weights ``(groups, N / groups)`` of the outputs, positive.
    """

    weights: Array

    @classmethod
    def of(cls, squares: Array) -> GateMetric | None:
        """The metric of mean squared derivatives ``(groups, N / groups)``; None if they are zero.

        None also where one of them is no number.
        """
        mean = float(squares.mean())
        if not (np.isfinite(mean) and mean > 0):
            return None
        return cls(np.maximum(squares / mean, _LEAST))

    def weighed(self, values: Array, axis: int) -> Array:
        """Outputs along an axis, such that their plain errors count.

        Args:
            values: an array with all outputs along axis 0, or with the groups along axis 0 and
                their outputs along ``axis``.
            axis: axis of the outputs.
        """
        weighed: Array = values * self._roots(values, axis)
        return weighed

    def plain(self, values: Array, axis: int) -> Array:
        """The inverse of :meth:`weighed`."""
        plain: Array = values / self._roots(values, axis)
        return plain

    def taken(self, rows: npt.NDArray[np.bool_]) -> GateMetric:
        """The metric of some of the outputs, by a mask ``(N,)`` with as many of each group."""
        return GateMetric(self.weights.reshape(-1)[rows].reshape(len(self.weights), -1))

    def _roots(self, values: Array, axis: int) -> Array:
        groups, outputs = self.weights.shape
        shape = [1] * values.ndim
        if axis == 0:
            shape[0] = groups * outputs
        else:
            shape[0], shape[axis] = groups, outputs
        return np.sqrt(self.weights).reshape(shape).astype(values.dtype)
