"""Array files: .npz, .npy and TensorProto, read without pickle and without filling the memory."""

from __future__ import annotations

import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from onnx_lowrank.errors import DataError
from onnx_lowrank.modelfile.array_store import ArrayStore, Slot
from onnx_lowrank.modelfile.file_kinds import other_kind

__all__ = [
    "array_files",
    "npz_keys",
    "read_npy",
    "read_npz",
    "tensor_feeds",
    "tensor_folders",
]

Array = npt.NDArray[Any]

#: A .npy file from this size on is mapped in place. Smaller ones are copied: a map holds an
#: open file, and a folder may have more of them than a process may open.
MAP_IN_PLACE = 64 << 20  # bytes
#: Longest header of an .npy file. NumPy has the same limit, but checks it only after the header
#: is in memory.
LARGEST_HEADER = 10_000  # bytes
#: First bytes of array files, by suffix.
_MAGIC = {".npz": b"PK", ".npy": b"\x93NUMPY"}
#: Largest size of a protobuf message.
LARGEST_TENSOR = 1 << 31  # bytes


def npz_keys(path: Path) -> tuple[str, ...]:
    """List the names of the arrays in an .npz archive."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        return tuple(name.removesuffix(".npy") for name in archive.namelist())


def read_npz(path: Path, keys: Sequence[str], store: ArrayStore) -> dict[str, Slot]:
    """Unpack some arrays of an .npz archive.

    Raises:
        DataError: the archive is broken, or holds Python objects.
    """
    slots = {}
    with _reading(path), zipfile.ZipFile(path) as archive:
        for key in keys:
            with archive.open(f"{key}.npy") as stream:
                slots[key] = _copied(stream, store)
    return slots


def read_npy(path: Path, store: ArrayStore) -> Slot | Array:
    """Read the array of an .npy file: a large one is mapped, a small one copied.

    Raises:
        DataError: the file is broken, or holds Python objects.
    """
    with _reading(path), path.open("rb") as file:
        if path.stat().st_size < MAP_IN_PLACE:
            return _copied(file, store)
        shape, fortran, dtype = _header(file)
        if path.stat().st_size - file.tell() != math.prod(shape) * dtype.itemsize:
            raise ValueError("truncated, or longer than its header declares")
        order: Any = "F" if fortran else "C"
        return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape, order))


def array_files(folder: Path) -> list[Path]:
    """The .npz and .npy files of a folder, by name."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in (".npz", ".npy") and not p.name.startswith(".")
    )


def tensor_folders(folder: Path) -> list[Path]:
    """The folders of ``input_*.pb`` files: ``folder`` itself, or its ``test_data_set_*``."""
    if any(folder.glob("input_*.pb")):
        return [folder]
    return [p for p in sorted(folder.glob("test_data_set_*"), key=_number) if p.is_dir()]


def tensor_feeds(folders: Sequence[Path], names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Read one feed from each folder of ``input_*.pb`` files.

    Args:
        folders: the folders.
        names: names of the inputs, in the order of the files' numbers.

    Yields:
        The folder and its arrays by name.

    Raises:
        DataError: a file is broken, or a folder has more or fewer files than there are names.
    """
    for folder in folders:
        files = sorted(folder.glob("input_*.pb"), key=_number)
        if len(files) != len(names):
            raise DataError(
                f"{folder}: expected one input_*.pb for each of the inputs "
                f"{', '.join(names)}, found {len(files)} files"
            )
        yield str(folder), {n: _tensor(f) for n, f in zip(names, files, strict=True)}


def _tensor(path: Path) -> Array:
    tensor = onnx.TensorProto()
    try:
        _check_file(path)
        if path.stat().st_size > LARGEST_TENSOR:
            raise ValueError("larger than 2 GiB")
        tensor.ParseFromString(path.read_bytes())
        if tensor.external_data or min(tensor.dims, default=0) < 0:
            raise ValueError(
                f"its values are in another file, or its shape {list(tensor.dims)} is not valid"
            )
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == onnx.TensorProto.STRING:
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in values.reshape(-1)]
            values = np.array(texts, dtype=np.str_).reshape(values.shape)
        return values
    # decoders raise errors of many types on broken files
    except Exception as error:
        if (kind := other_kind(path)) is not None:
            raise DataError(f"{path}: not a TensorProto, but {kind.as_data()}") from error
        raise DataError(
            f"{path}: not a TensorProto, or truncated ({error}); write it again"
        ) from error


def _number(path: Path) -> tuple[int, str]:
    found = re.search(r"_(\d+)$", path.stem)
    return (int(found[1]) if found else -1, path.name)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"format version {version} is only used for structured arrays")
    size = stream.read(2 * version[0])
    length = int.from_bytes(size, "little")
    if length > LARGEST_HEADER:
        raise ValueError(f"its header has {length} bytes")
    header = BytesIO(size + stream.read(length))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy warns of headers that Python 2 wrote
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(header)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded")
    if min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise ValueError(f"its shape is {shape} and its type {dtype}, which is not valid")
    return tuple(map(int, shape)), fortran, dtype


def _copied(stream: IO[bytes], store: ArrayStore) -> Slot:
    """Copy the array of an open .npy file into a store, a part at a time.

    Raises:
        ValueError: the file is not a .npy file, or is longer or shorter than it declares.
    """
    shape, fortran, dtype = _header(stream)
    return store.copy(stream, dtype, shape, fortran)


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")  # reading a pipe would block


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        _check_file(path)
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except DataError:
        raise
    # decoders raise errors of many types on broken files: zipfile, zlib, NumPy's header parser
    except Exception as error:
        if (kind := other_kind(path, _MAGIC.get(path.suffix.lower()))) is not None:
            raise DataError(f"{path}: not an array file, but {kind.as_data()}") from error
        raise DataError(
            f"{path}: cannot be read ({error}); write numeric arrays with numpy.savez or numpy.save"
        ) from error
