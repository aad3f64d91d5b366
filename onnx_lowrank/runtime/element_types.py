"""Element types that NumPy has no names for, on their way to and from ONNX Runtime."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

__all__ = ["UNNAMED", "copied"]

#: element types that ONNX Runtime passes to and from NumPy by their bytes alone
UNNAMED: dict[str, np.dtype[Any]] = {
    f"tensor({TensorProto.DataType.Name(element).lower()})": np.dtype(
        helper.tensor_dtype_to_np_dtype(element)
    )
    for element in (
        TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
    )
}  # fmt: skip


def copied(value: Any) -> npt.NDArray[Any]:
    """Copy an ``OrtValue`` of any element type that takes whole bytes."""
    dtype = UNNAMED.get(value.data_type())
    if dtype is None:
        return np.asarray(value.numpy())
    shape = tuple(value.shape())
    size = math.prod(shape) * dtype.itemsize
    held = (ctypes.c_char * size).from_address(value.data_ptr()) if size else b""
    return np.frombuffer(held, dtype).reshape(shape).copy()
