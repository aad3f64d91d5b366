"""Loading and saving of models: external data, opset, IR version and metadata are kept.

Files are written atomically. External data must be in regular files in the folder of the model. It
is mapped into memory tensor by tensor, and copied in small parts: a model may be larger than
memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, checker, external_data_helper, numpy_helper

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.atomic_files import atomic_write, atomic_writes
from onnx_lowrank.modelfile.checks import sound, tensor_bytes
from onnx_lowrank.modelfile.external_data import (
    Place,
    check,
    chunks,
    layout,
    mappable,
    mapped,
    place,
    refer,
)
from onnx_lowrank.modelfile.file_kinds import other_kind
from onnx_lowrank.modelfile.protobuf import all_tensors
from onnx_lowrank.modelfile.scratch import Scratch

__all__ = ["Model", "atomic_write", "check_output", "load", "save"]

#: Largest protobuf that is written, in bytes; protobuf refuses to serialise 2 GiB.
LARGEST_PROTO = 1_900_000_000
#: Largest possible size of a protobuf, in bytes.
LARGEST_FILE = 1 << 31
#: Tensors smaller than this many bytes stay in the model file, as with ``onnx.save``.
SMALLEST_EXTERNAL = 1024


@dataclass(frozen=True)
class Model:
    """A ModelProto whose external tensors stay on disk.

    Attributes:
        proto: the model.
        folder: folder of its external data.
        path: path of the file that it was read from.
        scratch: temporary file with the values of new external tensors.
        homes: names of the original's files of weights that new initializers are to be saved in,
            by initializer.
    """

    proto: onnx.ModelProto
    folder: Path | None = None
    path: Path | None = None
    scratch: Scratch | None = None
    homes: Mapping[str, str] = field(default_factory=dict)

    def read(self, tensor: TensorProto) -> npt.NDArray[Any]:
        """The values of ``tensor``, mapped read-only where they are external."""
        try:
            if not external_data_helper.uses_external_data(tensor):
                return numpy_helper.to_array(tensor)
            if self.scratch is not None and self.scratch.holds(tensor):
                return self.scratch.read(tensor)
            if mappable(tensor):
                where = place(tensor)
                file = (self.folder or Path()) / where.location
                return mapped(file, where.offset, tensor.data_type, tensor.dims)
            return numpy_helper.to_array(tensor, str(self.folder or ""))
        except (OSError, ValueError, TypeError, checker.ValidationError) as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error

    def chunks(self, tensor: TensorProto) -> Iterator[bytes]:
        """Yield the bytes of an external ``tensor`` in small parts."""
        if self.scratch is not None and self.scratch.holds(tensor):
            yield from self.scratch.chunks(tensor)
            return
        where = place(tensor)
        try:
            file = ((self.folder or Path()) / where.location).open("rb")
        except OSError as error:
            raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error
        with file:
            yield from chunks(file, where)

    @property
    def external(self) -> bool:
        """Whether the values of any tensor are outside the model file."""
        return next(self.outside, None) is not None

    @property
    def outside(self) -> Iterator[TensorProto]:
        """Tensors whose values are outside the model file."""
        return filter(external_data_helper.uses_external_data, all_tensors(self.proto))

    @property
    def bytes(self) -> int:
        """Size of the model with all its data, in bytes; tied tensors count once."""
        return self.proto.ByteSize() + sum(p.length for p in set(map(place, self.outside)))

    @property
    def large(self) -> bool:
        """Whether the model is too large for one protobuf; it is then kept and run in pieces."""
        # protobuf writes a model to know its size, and an element takes ten bytes at the most
        values = sum(map(tensor_bytes, all_tensors(self.proto)))
        return values > LARGEST_PROTO // 16 and self.bytes > LARGEST_PROTO

    @property
    def whole(self) -> onnx.ModelProto:
        """The model with all its values inside; the protobuf itself where they are."""
        if not self.external:
            return self.proto
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in list(Model(proto).outside):
            _embed(tensor, b"".join(self.chunks(tensor)))
        return proto

    @property
    def portable(self) -> Model:
        """The model as other processes can read it: nothing of it is in the temporary file.

        Raises:
            ModelError: what is in that file is too large for the model itself.
        """
        scratch = self.scratch
        own = [] if scratch is None else [t for t in self.outside if scratch.holds(t)]
        if not own:
            return replace(self, scratch=None)
        size = self.proto.ByteSize() + sum(p.length for p in set(map(place, own)))
        if size > LARGEST_PROTO:
            raise ModelError(
                f"the model has {size:,} bytes of new weights, which are too many to be sent to "
                "workers; leave the scheduler out"
            )
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in list(Model(proto).outside):
            if scratch is not None and scratch.holds(tensor):
                _embed(tensor, b"".join(self.chunks(tensor)))
        return replace(self, proto=proto, scratch=None)

    @property
    def skeleton(self) -> onnx.ModelProto:
        """The model with empty external tensors, for ``onnx.checker``."""
        if not self.external:
            return self.proto
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in list(Model(proto).outside):
            tensor.dims[:] = [0]
            _embed(tensor, b"")
        return proto

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the model file (without its external data), hexadecimal.

        It is computed once: the protobuf should not change afterwards.
        """
        return hashlib.sha256(self.proto.SerializeToString(deterministic=True)).hexdigest()


def load(source: str | os.PathLike[str] | onnx.ModelProto | Model) -> Model:
    """Load a model; external data stays on disk until a tensor is read.

    Args:
        source: a path, or a ModelProto with its data inside.

    Raises:
        ModelError: the file is absent or not an ONNX model, or its external data is missing.
    """
    if isinstance(source, Model):
        return source
    if isinstance(source, onnx.ModelProto):
        if Model(source).external:
            raise ModelError(
                "the ModelProto refers to external data files; pass the path of the model instead"
            )
        if sum(map(tensor_bytes, all_tensors(source))) > LARGEST_FILE:
            raise ModelError(
                "the ModelProto is larger than 2 GiB; save it with its weights in a file beside "
                "it (onnx.save, save_as_external_data=True), and pass the path"
            )
        return Model(sound(source, "the ModelProto"))
    path = Path(source)
    proto = onnx.ModelProto()
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ModelError(
                f"{path}: larger than 2 GiB, which an ONNX file cannot be; give the model file"
            )
        if not path.is_file():  # reading a pipe would block, reading a device never end
            raise ModelError(f"{path}: not a regular file; give the model file")
        if (kind := other_kind(path)) is not None:
            raise ModelError(f"{path}: not an ONNX model, but {kind.as_model()}")
        proto.ParseFromString(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); check the file"
        ) from error
    except DecodeError as error:
        raise ModelError(
            f"{path}: not an ONNX model, or truncated ({error}); export it again"
        ) from error
    model = Model(sound(proto, str(path)), path.absolute().parent, path)
    for tensor in model.outside:
        check(path.absolute().parent, tensor)
    return model


def save(model: Model, path: str | os.PathLike[str], *, source: Model | None = None) -> int:
    """Write ``model`` to ``path`` atomically: the file is whole or absent.

    Weights go to files beside it, one or many, if the weights of ``source`` are in such files, or
    if the model would be too large for one protobuf. Tensors that share their values still do so.

    Args:
        model: the model to write.
        path: path of the file to write.
        source: the model that was read, whose files are named after.

    Returns:
        Number of bytes written, external data included.

    Raises:
        OptionError: ``path`` is the source itself or a folder, or its folder does not exist.
        ModelError: the file cannot be written.
    """
    target = check_output(path, source)
    if model.large or any(_locations(m) for m in (model, source) if m is not None):
        return _save_external(model, target, source)
    payload = model.whole.SerializeToString(deterministic=True)
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
        path: path of the output.
        source: the model that is read.
        keep: paths of other files of the run, its data and its other outputs; None is ignored.

    Raises:
        OptionError: the path is the input, a file of its weights, another file of the run, a
            folder or a device, or its folder is absent or read-only.
    """
    target = Path(path)
    try:
        if source is not None and source.path is not None and _same_file(source.path, target):
            raise OptionError(f"{target} is the input itself; name another output")
        for file in () if source is None else _data_files(source):
            for ours in (target, *_data_paths(target, source)):
                if _same_file(file, ours):
                    raise OptionError(f"{ours} holds the input's weights; name another output")
        for other in (Path(name) for name in keep if name is not None):
            if _same_file(other, target) or other.absolute() == target.absolute():
                raise OptionError(
                    f"{target} is also given as another file of this command; name another output"
                )
        if target.is_dir():
            raise OptionError(f"{target} is a folder; name a file in it")
        if target.exists() and not target.is_file():
            raise OptionError(f"{target} is not a regular file; name another output")
        if not target.parent.is_dir():
            raise OptionError(f"{target.parent} does not exist; create it first")
    except OptionError:
        raise
    except (OSError, ValueError) as error:
        raise OptionError(f"{target}: cannot be written ({error}); name another output") from error
    if not os.access(target.parent, os.W_OK):
        raise OptionError(f"{target.parent} is read-only; name another folder")
    return target


def _embed(tensor: TensorProto, values: bytes) -> None:
    for name in ("external_data", "data_location"):
        tensor.ClearField(name)
    tensor.raw_data = values


def _save_external(model: Model, target: Path, source: Model | None) -> int:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    known = _layout(target, model if source is None else source)
    names = list(known.values())
    rest = names[0] if len(names) == 1 else f"{target.name}.data"
    homes = {name: known.get(location, rest) for name, location in model.homes.items()}
    moves = [
        (t, known.get(place(t).location) or homes.get(t.name, rest)) for t in Model(proto).outside
    ]
    inside = [t for t in proto.graph.initializer if t.HasField("raw_data")]
    moves += [(t, homes[t.name]) for t in inside if t.name in homes]
    wide = [t for t in inside if t.name not in homes and len(t.raw_data) >= SMALLEST_EXTERNAL]
    if sum(len(t.raw_data) for t in wide) > LARGEST_PROTO:
        moves += [(t, rest) for t in wide]
    # one order, wherever the values have been until now
    order = {t.name: i for i, t in enumerate(proto.graph.initializer)}
    moves.sort(key=lambda move: order.get(move[0].name, len(order)))
    names = list(dict.fromkeys(name for _, name in moves))
    moved: dict[Place, Place] = {}
    with atomic_writes(*map(target.with_name, names), target) as files:
        data = dict(zip(names, files[:-1], strict=True))
        for tensor, name in moves:
            _move_outside(model, tensor, name, data[name], moved)
        written = sum(file.tell() for file in data.values())
        payload = proto.SerializeToString(deterministic=True)
        files[-1].write(payload)
    return written + len(payload)


def _move_outside(
    model: Model, tensor: TensorProto, name: str, file: IO[bytes], moved: dict[Place, Place]
) -> None:
    """Write the values of ``tensor`` to ``file``, unless they have been written already."""
    if not external_data_helper.uses_external_data(tensor):
        where = Place(name, file.tell(), len(tensor.raw_data))
        file.write(tensor.raw_data)
        refer(tensor, where)
        return
    source = place(tensor)
    if source not in moved:
        moved[source] = Place(name, file.tell(), source.length)
        for part in model.chunks(tensor):
            file.write(part)
    refer(tensor, moved[source])


def _layout(target: Path, source: Model) -> dict[str, str]:
    """Names of the files of weights beside ``target``, by the names of the source's files."""
    return layout(_locations(source), source.path.name if source.path else "", target.name)


def _locations(model: Model) -> list[str]:
    """Names of the files that the model's tensors refer to, in the order of the tensors."""
    ours = "" if model.scratch is None else model.scratch.location
    found = dict.fromkeys(place(t).location for t in model.outside)
    return [location for location in found if location != ours]


def _data_paths(target: Path, source: Model | None) -> set[Path]:
    """Paths of the files of weights that may be written beside ``target``."""
    names = {} if source is None else _layout(target, source)
    return {target.with_name(name) for name in (f"{target.name}.data", *names.values())}


def _data_files(model: Model) -> set[Path]:
    folder = model.folder or Path()
    return {folder / place(tensor).location for tensor in model.outside}


def _same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # one of them does not exist
        return False
