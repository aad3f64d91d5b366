"""External data: tensors whose values are in files beside the model, and the names of the files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.checks import tensor_bytes
from onnx_lowrank.modelfile.file_kinds import other_kind

__all__ = ["Place", "check", "chunks", "layout", "mapped", "place", "refer"]

#: number of bytes that are copied at a time
_CHUNK = 1 << 20
#: largest number of files of weights that a model is written with, as they are open at the same
#: time; where there would be more, all weights go to one
_MOST_FILES = 200


class Place(NamedTuple):
    """A range of bytes in a file of weights; tensors with shared values have the same range."""

    location: str
    offset: int
    length: int


def place(tensor: TensorProto) -> Place:
    """The range of bytes that holds the values of an external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = tensor_bytes(tensor)
    return Place(entries.get("location", ""), int(entries.get("offset", 0)), length)


def refer(tensor: TensorProto, where: Place) -> None:
    """Make ``tensor`` refer to its values at ``where``."""
    for name in ("raw_data", "external_data"):
        tensor.ClearField(name)
    for key, value in zip(Place._fields, where, strict=True):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.EXTERNAL


def mapped(
    file: Path | IO[bytes], offset: int, element: int, dims: Iterable[int]
) -> npt.NDArray[Any]:
    """Map values in a file as a read-only array, which takes no memory until it is read.

    Args:
        file: path, or open file.
        offset: position of the first value, in bytes.
        element: ONNX element type.
        dims: shape.
    """
    dtype, shape = helper.tensor_dtype_to_np_dtype(element), tuple(dims)
    if 0 in shape:
        return np.zeros(shape, dtype)
    # map one axis: NumPy cannot map an array without axes
    flat = np.memmap(file, dtype, "r", offset, (int(np.prod(shape, dtype=np.int64)),))
    return flat.view(np.ndarray).reshape(shape)


def mappable(tensor: TensorProto) -> bool:
    """Whether the bytes of a tensor are also the bytes of a NumPy array."""
    size = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    whole = tensor_bytes(tensor) == size * int(np.prod(tensor.dims, dtype=np.int64))
    return whole and sys.byteorder == "little"


def chunks(file: IO[bytes], where: Place) -> Iterator[bytes]:
    """Yield the bytes at a place, some at a time.

    Raises:
        ModelError: the file is too short.
    """
    file.seek(where.offset)
    left = where.length
    while left:
        part = file.read(min(left, _CHUNK))
        if not part:
            raise ModelError(f"external data file {where.location!r} is too short; copy it again")
        left -= len(part)
        yield part


def layout(locations: Iterable[str], source: str, target: str) -> dict[str, str]:
    """Map the names of the files of weights of a model that was read to those to write.

    One file stays one, many stay many. All are named after the model, so that two models in one
    folder never share a file: ``m.onnx_data`` of ``m.onnx`` becomes ``n.onnx_data`` of
    ``n.onnx``, and any ``part.bin`` becomes ``n.onnx.part.bin``.

    Args:
        locations: names of the files of weights that the tensors of the source refer to.
        source: name of the source's file; empty where it has none.
        target: name of the file to write.
    """
    unique = list(dict.fromkeys(locations))
    if len(unique) == 1 and not (source and unique[0].startswith(source)):
        return {unique[0]: f"{target}.data"}
    if len(unique) > _MOST_FILES:
        return dict.fromkeys(unique, f"{target}.data")
    names: dict[str, str] = {}
    for location in unique:
        flat = location.replace("\\", "/").strip("./").replace("/", "_")
        ours = bool(source) and flat.startswith(source) and len(flat) > len(source)
        stem = f"{target}{flat[len(source) :]}" if ours else f"{target}.{flat}"
        name, count = stem, 1
        while name in names.values():
            name, count = f"{stem}_{count}", count + 1
        names[location] = name
    return names


def check(folder: Path, tensor: TensorProto) -> None:
    """Refuse external data that is absent, outside the folder of the model, or too short.

    Raises:
        ModelError: the data cannot be read.
    """
    where = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = folder.resolve()
    try:
        file = (folder / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ModelError(
                f"{where}: external data {location!r} is outside the model's folder; put it beside "
                "the model"
            )
        if not file.is_file():
            raise ModelError(
                f"{where}: external data file {location!r} is missing; put it beside the model"
            )
        size = file.stat().st_size
        offset, wanted = int(entries.get("offset", 0)), tensor_bytes(tensor)
        length = int(entries.get("length", wanted))
    # RuntimeError: symbolic links in a cycle
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{where}: external data {location!r} cannot be read ({error}); export the model again"
        ) from error
    if offset < 0 or length != wanted:
        raise ModelError(
            f"{where}: its shape needs {wanted} bytes of external data, but it refers to {length} "
            f"at {offset}; export the model again"
        )
    if size < offset + length and (kind := other_kind(file)) is not None and kind.remedy:
        raise ModelError(f"{where}: external data file {location!r} is {kind.name}; {kind.remedy}")
    if size < offset + length:
        raise ModelError(f"{where}: external data file {location!r} is too short; copy it again")
