"""Load and save: external data, opset, IR version and metadata kept, written atomically.

External data is looked for in the folder of the model and nowhere else, in plain files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, checker, external_data_helper, numpy_helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.files import atomic_write, atomic_writes
from onnx_lowrank.protobuf import all_tensors
from onnx_lowrank.soundness import sound, tensor_bytes

__all__ = ["Model", "atomic_write", "check_output", "load", "save"]

#: Protobuf refuses to serialise 2 GiB; stay clear of it.
LARGEST_PROTO = 1_900_000_000
#: no protobuf is longer, bytes
LARGEST_FILE = 1 << 31
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

    def read_bytes(self, tensor: TensorProto) -> bytes:
        """The values of an external ``tensor`` as they lie on disk."""
        info = external_data_helper.ExternalDataInfo(tensor)
        try:
            with ((self.folder or Path()) / info.location).open("rb") as file:
                file.seek(int(info.offset or 0))
                return file.read(tensor_bytes(tensor))
        except OSError as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error

    @property
    def external(self) -> bool:
        """Whether any tensor lives outside the model file."""
        return next(self.outside, None) is not None

    @property
    def outside(self) -> Iterator[TensorProto]:
        """Tensors whose values live outside the model file."""
        return filter(external_data_helper.uses_external_data, all_tensors(self.proto))

    @property
    def bytes(self) -> int:
        """Size of the model with all its data, in bytes."""
        return self.proto.ByteSize() + sum(map(tensor_bytes, self.outside))

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
        if Model(source).external:
            raise ModelError(
                "the ModelProto refers to external data files; pass the path of the model instead"
            )
        return Model(sound(source, "the ModelProto"))
    path = Path(source)
    proto = onnx.ModelProto()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(f"{path}: larger than 2 GiB, which no ONNX file is; give the model")
        if not path.is_file():  # a pipe would block, a device never end
            raise ModelError(f"{path}: cannot be read (no plain file); give the model itself")
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    except DecodeError as error:
        raise ModelError(
            f"{path}: not an ONNX model, or truncated ({error}); export it again"
        ) from error
    model = Model(sound(proto, str(path)), path.absolute().parent, path)
    for tensor in model.outside:
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


def check_output(
    path: str | os.PathLike[str],
    source: Model | None = None,
    keep: Iterable[str | os.PathLike[str] | None] = (),
) -> Path:
    """Refuse a path that cannot be written to, before any work is done for it.

    Args:
        path: of the output.
        source: the model that is read.
        keep: other files of the run: its data, its other outputs. Those that are None are none.

    Raises:
        ModelError: it is the input itself, the file of its weights, one to keep, a folder or a
            device, or its folder is absent or read-only.
    """
    target = Path(path)
    try:
        if source is not None and source.path is not None and _same_file(source.path, target):
            raise ModelError(f"{target} is the input itself; name another output")
        for file in () if source is None else _data_files(source):
            for ours in (target, _data_path(target)):
                if _same_file(file, ours):
                    raise ModelError(f"{ours} holds the input's weights; name another output")
        for other in (Path(name) for name in keep if name is not None):
            if _same_file(other, target) or other.absolute() == target.absolute():
                raise ModelError(f"{target} has another part in this run; name another output")
        if target.is_dir():
            raise ModelError(f"{target} is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise ModelError(f"{target} is no plain file; name another output")
        if not target.parent.is_dir():
            raise ModelError(f"{target.parent} does not exist; create it first")
    except (OSError, ValueError) as error:
        raise ModelError(f"{target}: cannot be written ({error}); name another output") from error
    if not os.access(target.parent, os.W_OK):
        raise ModelError(f"{target.parent} is read-only; name another folder")
    return target


def _save_external(model: Model, target: Path) -> int:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    data_path = _data_path(target)
    with atomic_writes(data_path, target) as (data, file):
        for tensor in list(Model(proto).outside):
            _move_outside(tensor, model.read_bytes(tensor), data, data_path.name)
        for tensor in proto.graph.initializer:
            if len(tensor.raw_data) >= SMALLEST_EXTERNAL:
                _move_outside(tensor, tensor.raw_data, data, data_path.name)
        written = data.tell()
        payload = proto.SerializeToString(deterministic=True)
        file.write(payload)
    return written + len(payload)


def _move_outside(tensor: TensorProto, values: bytes, data: IO[bytes], location: str) -> None:
    offset = data.tell()
    data.write(values)
    tensor.ClearField("external_data")
    tensor.raw_data = b"\0"  # set_external_data insists on there being some
    external_data_helper.set_external_data(tensor, location, offset, len(values))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def _data_path(target: Path) -> Path:
    return target.with_name(target.name + ".data")


def _data_files(model: Model) -> set[Path]:
    folder = model.folder or Path()
    return {folder / _location(tensor) for tensor in model.outside}


def _location(tensor: TensorProto) -> str:
    return external_data_helper.ExternalDataInfo(tensor).location


def _check_external(model: Model, tensor: TensorProto) -> None:
    where = f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    folder = (model.folder or Path()).resolve()
    try:
        file = (folder / location).resolve()
        if Path(location).is_absolute() or not file.is_relative_to(folder):
            raise ModelError(
                f"{where}: external data {location!r} leaves the folder; put it beside the model"
            )
        if not file.is_file():
            raise ModelError(
                f"{where}: external data file {location!r} is missing; put it beside the model"
            )
        size = file.stat().st_size
        offset, wanted = int(entries.get("offset", 0)), tensor_bytes(tensor)
        length = int(entries.get("length", wanted))
    # RuntimeError: links in a circle
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"{where}: external data {location!r} cannot be read ({error}); export the model again"
        ) from error
    if offset < 0 or length != wanted:
        raise ModelError(
            f"{where}: declares {wanted} bytes of external data, refers to {length} at {offset}; "
            "export the model again"
        )
    if size < offset + length:
        raise ModelError(f"{where}: external data file {location!r} is too short; copy it again")


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # one of them is not there
        return False
