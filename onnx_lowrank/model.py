"""Load and save: external data, opset, IR version and metadata kept, written atomically."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, checker, external_data_helper, numpy_helper

from onnx_lowrank.errors import ModelError

__all__ = ["Model", "atomic_write", "check_output", "load", "save"]

#: Protobuf refuses to serialise 2 GiB; stay clear of it.
LARGEST_PROTO = 1_900_000_000
#: Tensors smaller than this stay in the model file (as ``onnx.save`` does).
SMALLEST_EXTERNAL = 1024


@dataclass(frozen=True)
class Model:
    """A ModelProto whose external tensors stay on disk, and the folder they are read from."""

    proto: onnx.ModelProto
    folder: Path | None = None
    path: Path | None = None

    def read(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """The values of ``tensor``, read from disk where they are external."""
        try:
            return numpy_helper.to_array(tensor, str(self.folder or ""))
        except (OSError, ValueError, TypeError, checker.ValidationError) as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error

    @property
    def external(self) -> bool:
        """Whether any initializer lives outside the model file."""
        return any(map(external_data_helper.uses_external_data, self.proto.graph.initializer))

    @property
    def bytes(self) -> int:
        """Size of the model with all its data, in bytes."""
        size = self.proto.ByteSize()
        for tensor in self.proto.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                size += _external_length(tensor)
        return size

    @property
    def digest(self) -> str:
        """SHA-256 of the model file (without its external data), hexadecimal."""
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()


def load(source: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Load a model; external data stays on disk until a tensor is read.

    Args:
        source: a path, or a ModelProto with its data inside.

    Raises:
        ModelError: the file is absent, no ONNX model, or its external data is missing.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        model = Model(source)
        if model.external:
            raise ModelError(
                "the ModelProto refers to external data files; pass the path of the model instead"
            )
        return _checked(model, "the ModelProto")
    path = Path(source)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX model, or truncated ({error})") from error
    model = _checked(Model(proto, path.absolute().parent, path), str(path))
    for tensor in proto.graph.initializer:
        if external_data_helper.uses_external_data(tensor):
            _check_external(model, tensor)
    return model


def save(model: Model, path: str | os.PathLike[str], *, source: Model | None = None) -> int:
    """Write ``model`` to ``path`` in one step: the file is absent, or whole.

    Weights go to ``<path>.data`` beside it where ``source`` kept them outside, or where the
    model would pass protobuf's 2 GB.

    Returns:
        Bytes written, external data included.

    Raises:
        ModelError: ``path`` is the source itself, a folder, or cannot be written.
    """
    target = check_output(path, source)
    outside = model.external or (source is not None and source.external)
    if outside or model.bytes > LARGEST_PROTO:
        return _save_external(model, target)
    payload = model.proto.SerializeToString(deterministic=True)
    with atomic_write(target) as file:
        file.write(payload)
    return len(payload)


def check_output(path: str | os.PathLike[str], source: Model | None = None) -> Path:
    """Refuse a path that cannot be written to, before any work is done for it.

    Raises:
        ModelError: it is the input itself or a folder, or its folder is absent or read-only.
    """
    target = Path(path)
    if source is not None and source.path is not None and _same_file(source.path, target):
        raise ModelError(f"{target} is the input itself; name another output")
    if target.is_dir():
        raise ModelError(f"{target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise ModelError(f"{target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise ModelError(f"{target.parent} is read-only; name another folder")
    return target


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name ``path`` only once it is whole and on disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def _save_external(model: Model, target: Path) -> int:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    data_path = target.with_name(target.name + ".data")
    if model.folder is not None and any(
        _same_file(model.folder / _location(t), data_path)
        for t in model.proto.graph.initializer
        if external_data_helper.uses_external_data(t)
    ):
        raise ModelError(f"{data_path} holds the input's weights; name another output")
    with atomic_write(data_path) as data:
        for tensor in proto.graph.initializer:
            _move_outside(model, tensor, data, data_path.name)
        written = data.tell()
    payload = proto.SerializeToString(deterministic=True)
    with atomic_write(target) as file:
        file.write(payload)
    return written + len(payload)


def _move_outside(model: Model, tensor: TensorProto, data: IO[bytes], location: str) -> None:
    if external_data_helper.uses_external_data(tensor):
        values = model.read(tensor)
        packed = numpy_helper.from_array(values).raw_data
    elif len(tensor.raw_data) >= SMALLEST_EXTERNAL:
        packed = tensor.raw_data
    else:
        return
    offset = data.tell()
    data.write(packed)
    tensor.ClearField("external_data")
    tensor.raw_data = b""
    external_data_helper.set_external_data(
        tensor=_placeholder(tensor), location=location, offset=offset, length=len(packed)
    )
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def _placeholder(tensor: TensorProto) -> TensorProto:
    # set_external_data insists on raw_data being present
    tensor.raw_data = b"\0"
    return tensor


def _checked(model: Model, name: str) -> Model:
    graph = model.proto.graph
    if model.proto.ir_version < 1 or not graph.node:
        raise ModelError(f"{name}: not an ONNX model, or a model without nodes")
    if not model.proto.opset_import:
        raise ModelError(f"{name}: declares no opset; export it again")
    return model


def _location(tensor: TensorProto) -> str:
    return external_data_helper.ExternalDataInfo(tensor).location


def _external_length(tensor: TensorProto) -> int:
    length: Any = external_data_helper.ExternalDataInfo(tensor).length  # typed str, is int
    if length:
        return int(length)
    return int(
        np.prod(tensor.dims, dtype=np.int64)
        * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    )


def _check_external(model: Model, tensor: TensorProto) -> None:
    folder = (model.folder or Path()).resolve()
    location = _location(tensor)
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise ModelError(f"tensor {tensor.name!r}: external data {location!r} leaves the folder")
    if not file.is_file():
        raise ModelError(f"tensor {tensor.name!r}: external data file {location!r} is missing")
    info = external_data_helper.ExternalDataInfo(tensor)
    if file.stat().st_size < int(info.offset or 0) + _external_length(tensor):
        raise ModelError(f"tensor {tensor.name!r}: external data file {location!r} is too short")


def _same_file(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)
