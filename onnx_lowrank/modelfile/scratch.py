"""Constants of a model that is being made, where they are too many for memory."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
from onnx import TensorProto, helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.modelfile.external_data import Place, place, refer

__all__ = ["Scratch"]


class Scratch:
    """Constants in a temporary file; it lives as long as a model refers to it.

    Tensors refer to it as to a file of external data, by a location that no model from elsewhere
    can know.
    """

    def __init__(self) -> None:
        self.location = f"~{secrets.token_hex(8)}"
        self._store = ArrayStore("the weights of the model", error=ModelError)

    def add(self, name: str, values: npt.NDArray[Any]) -> TensorProto:
        """Store values, and return the tensor that refers to them.

        Raises:
            ModelError: the disk is full.
        """
        slot = self._store.write(values)
        element = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=name, data_type=element, dims=values.shape)
        refer(tensor, Place(self.location, slot.offset, values.nbytes))
        return tensor

    def holds(self, tensor: TensorProto) -> bool:
        """Whether the values of an external tensor are here."""
        return place(tensor).location == self.location

    def read(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """Return the values of a tensor that is here, mapped and read-only."""
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        return self._store.view(Slot(place(tensor).offset, dtype, tuple(tensor.dims)))

    def chunks(self, tensor: TensorProto) -> Iterator[bytes]:
        """Yield the bytes of a tensor that is here."""
        where = place(tensor)
        return self._store.pieces(where.offset, where.length)
