"""Constants of a model that is being made, where they are too many for memory."""

from __future__ import annotations

import secrets
import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnx_lowrank.modelfile.external_data import Place, chunks, mapped, place, refer

__all__ = ["Scratch"]


class Scratch:
    """A temporary file of constants; it lives as long as a model refers to it.

    Tensors refer to it as to a file of external data, by a location that no model from elsewhere
    can know.
    """

    def __init__(self) -> None:
        self.location = f"~{secrets.token_hex(8)}"
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as we do
        weakref.finalize(self, self._file.close)

    def add(self, name: str, values: npt.NDArray[Any]) -> TensorProto:
        """A tensor of these values."""
        offset = self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        self._file.flush()
        element = helper.np_dtype_to_tensor_dtype(values.dtype)
        tensor = TensorProto(name=name, data_type=element, dims=values.shape)
        refer(tensor, Place(self.location, offset, values.nbytes))
        return tensor

    def holds(self, tensor: TensorProto) -> bool:
        """Whether the values of an external tensor are here."""
        return place(tensor).location == self.location

    def read(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """The values of a tensor that is here, mapped."""
        return mapped(self._file, place(tensor).offset, tensor.data_type, tensor.dims)

    def chunks(self, tensor: TensorProto) -> Iterator[bytes]:
        """The bytes of a tensor that is here."""
        return chunks(self._file, place(tensor))
