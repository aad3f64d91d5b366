"""Values of initializers: of the original, read from its files, and of new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import TensorProto, numpy_helper

from onnx_lowrank.modelfile.model import SMALLEST_EXTERNAL, Model
from onnx_lowrank.modelfile.scratch import Scratch

__all__ = ["Initializers"]


class Initializers:
    """The initializers of an edited graph; those of a large model are kept on disk.

    Args:
        model: the original.
        tensors: tensors of the graph by name, as onnx-graphsurgeon has them; new ones come to it.

    Attributes:
        scratch: temporary file with the values of new initializers; None for a model that fits in
            memory.
    """

    def __init__(self, model: Model, tensors: Mapping[str, Any]) -> None:
        self._model, self._tensors = model, tensors
        self._originals = {t.name: t for t in model.proto.graph.initializer}
        self.scratch = model.scratch or (Scratch() if model.large else None)
        #: new ones that are on disk
        self._spilled: dict[str, TensorProto] = {}

    def original(self, name: str) -> TensorProto | None:
        """The initializer ``name`` of the original model; None without one."""
        return self._originals.get(name)

    def proto(self, name: str) -> TensorProto | None:
        """An initializer, of the original or new; None for other tensors."""
        if name in self._originals:
            return self._originals[name]
        if not isinstance(self._tensors.get(name), gs.Constant):
            return None
        return self._spilled.get(name) or numpy_helper.from_array(self._tensors[name].values, name)

    def dims(self, name: str) -> tuple[int, ...] | None:
        """Shape of an initializer, of the original or new; None for other tensors."""
        if name in self._originals:
            return tuple(self._originals[name].dims)
        found = self._tensors.get(name)
        return tuple(found.shape) if isinstance(found, gs.Constant) else None

    def values(self, name: str) -> npt.NDArray[Any] | None:
        """Values of an initializer; None for other tensors, and for sparse ones."""
        if name in self._originals:
            return self._model.read(self._originals[name])
        found = self._tensors.get(name)
        if isinstance(found, gs.Constant) and isinstance(found._values, np.ndarray):
            return found._values
        return None

    def keep(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Keep the values of a new initializer; return them, mapped where they went to disk."""
        values = np.asarray(values, order="C")  # an array without axes stays one
        if self.scratch is None or values.nbytes < SMALLEST_EXTERNAL:
            self._spilled.pop(name, None)
            return values
        self._spilled[name] = self.scratch.add(name, values)
        return self.scratch.read(self._spilled[name])
