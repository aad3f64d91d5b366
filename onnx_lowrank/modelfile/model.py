"""A model whose external data stays on disk.

External data is mapped into memory tensor by tensor, and read in small parts: a model may be larger
than memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, checker, external_data_helper, numpy_helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.checks import tensor_bytes
from onnx_lowrank.modelfile.external_data import chunks, mappable, mapped, place
from onnx_lowrank.modelfile.protobuf import all_tensors, without_initializers
from onnx_lowrank.modelfile.scratch import Scratch

__all__ = ["LARGEST_PROTO", "SMALLEST_EXTERNAL", "Model"]

#: Largest protobuf that is written, in bytes; protobuf refuses to serialise 2 GiB.
LARGEST_PROTO = 1_900_000_000
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
        """The model without the values of large and external tensors, for ``onnx.checker``."""
        proto = without_initializers(self.proto)
        for tensor in self.proto.graph.initializer:
            copy = proto.graph.initializer.add()
            if tensor.HasField("raw_data") and tensor_bytes(tensor) >= SMALLEST_EXTERNAL:
                copy.name, copy.data_type = tensor.name, tensor.data_type
                copy.dims[:], copy.raw_data = [0], b""
            else:
                copy.CopyFrom(tensor)
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


def _embed(tensor: TensorProto, values: bytes) -> None:
    for name in ("external_data", "data_location"):
        tensor.ClearField(name)
    tensor.raw_data = values
