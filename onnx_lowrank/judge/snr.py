"""Signal-to-noise ratio of the outputs of a compressed model.

    10 log10( |reference|^2 / |new - reference|^2 )

in dB, over all samples and all outputs of floating-point numbers.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, ValidationError
from onnx_lowrank.judge.intervals import bootstrap
from onnx_lowrank.judge.requirement import Score
from onnx_lowrank.judge.sample_runs import SampleRuns
from onnx_lowrank.judge.scorer import Scorer
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import Values, difference, is_float

__all__ = ["SnrScorer"]


class SnrScorer(Scorer):
    """Scores models by the signal-to-noise ratio of all floating-point outputs.

    Args:
        runs: runs the original and the models.

    Raises:
        DataError: no output has floating-point numbers.
    """

    def __init__(self, runs: SampleRuns) -> None:
        self._runs = runs
        found, _ = runs.first()
        if not any(is_float(a) for arrays in found.values() for a in arrays):
            said = "; ".join(["no output has floating-point numbers", *runs.observer.notes])
            raise DataError(f"{said}; an SNR needs such an output: give a metric instead")

    def score(self, model: Model) -> Score:
        """Score ``model`` against the original.

        Raises:
            ValidationError: an output has another shape than the original's.
        """
        session = self._runs.observer.session(model)
        every = [
            _energies(old, new, self._runs.observer.loose)
            for old, new in zip(
                self._runs.compared(self._runs.reference), self._runs.compared(session), strict=True
            )
        ]
        signal, noise, places = np.concatenate(every, axis=1)
        if not places.any():
            raise DataError(
                "the original's outputs hold only NaN and Inf, or have other shapes in the "
                "compressed model, so nothing can be compared; give other samples"
            )

        def decibel(index: npt.NDArray[np.intp]) -> float:
            kept, lost = float(signal[index].sum()), float(noise[index].sum())
            if lost == 0:
                return math.inf
            return 10 * math.log10(kept / lost) if kept and lost < math.inf else -math.inf

        count = len(signal)
        value = decibel(np.arange(count))
        return Score(value, *bootstrap(decibel, value, count), count)


def _energies(old: Values, new: Values, loose: Collection[str]) -> npt.NDArray[np.float64]:
    """Energy of the original's floating-point outputs, and of the errors in them.

    Where the output has NaN or Inf in the original too, a value that becomes NaN or Inf counts as
    an error of its whole size; elsewhere it makes the error of its sample infinite.

    Returns:
        Energy, energy of the error, and number of finite values of the original, for each sample;
        ``(3, samples)``.
    """
    count = len(next((a for arrays in old.values() for a in arrays), ()))
    found = np.zeros((3, count))
    for name, arrays in old.items():
        others = new.get(name, [])
        if name not in loose and [a.shape for a in arrays] != [a.shape for a in others]:
            shapes = ([a.shape for a in v] for v in (others, arrays))
            one, other = (s[0] if len(s) == 1 else s for s in shapes)
            raise ValidationError(
                f"output {name!r} has the shape {one}, and the original's has {other}"
            )
        for a, b in zip(arrays, others, strict=False):
            if is_float(a) and a.shape == b.shape:
                apart = difference(a, b, count)
                spoilt = (apart.finite > apart.places) & bool(np.isfinite(a).all())
                found[0] += apart.signal + apart.lost
                found[1] += np.where(spoilt, math.inf, apart.noise + apart.lost)
                found[2] += apart.finite
    return found
