"""Weights that ONNX Runtime reads from a file of their own.

A session that is opened from a string needs it, what it is parsed to, and its own tensors at once:
three times the model. Weights in a file are mapped one by one, and let go again where the runtime
packs them in another order: a session takes half of the memory, and opens in two thirds of the
time. Nodes, fusions and results are the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnx import ModelProto, TensorProto

from onnx_lowrank.modelfile.checks import tensor_bytes
from onnx_lowrank.modelfile.external_data import Place, refer
from onnx_lowrank.modelfile.protobuf import without_initializers

__all__ = ["weights_in_file"]

#: name of the file
_NAME = "weights"
#: smallest tensor that is written, in bytes, and smallest sum of them that is worth a file
_TENSOR, _WORTH = 1 << 16, 4 << 20
#: multiple of bytes that tensors begin at: pages are mapped
_PAGE = 4096


@contextmanager
def weights_in_file(proto: ModelProto) -> Iterator[tuple[ModelProto, Path | None]]:
    """Write the large weights of a model into a temporary file for as long as a session opens.

    Args:
        proto: the model, with all its values inside; it is not changed.

    Yields:
        The model without these weights, and the folder of the file; the model itself and None
        where they are few, where the disk is full, and on systems that let go of no open file.
    """
    large = [t for t in proto.graph.initializer if _large(t)]
    with ExitStack() as stack:
        found: tuple[ModelProto, Path | None] = proto, None
        if os.name == "posix" and sum(map(tensor_bytes, large)) >= _WORTH:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                found = _written(proto, folder / _NAME), folder
            except OSError:  # it takes more memory, and works
                pass
        yield found


def _large(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") and tensor_bytes(tensor) >= _TENSOR


def _written(proto: ModelProto, path: Path) -> ModelProto:
    """A copy of a model whose large weights are in a file."""
    light = without_initializers(proto)
    with path.open("wb") as file:
        for tensor in proto.graph.initializer:
            copy = light.graph.initializer.add()
            if not _large(tensor):
                copy.CopyFrom(tensor)
                continue
            values = tensor.raw_data
            copy.name, copy.data_type = tensor.name, tensor.data_type
            copy.dims.extend(tensor.dims)
            refer(copy, Place(_NAME, file.tell(), len(values)))
            file.write(values)
            file.write(bytes(-file.tell() % _PAGE))
    return light
