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
from onnx.external_data_helper import uses_external_data

from onnx_lowrank.modelfile.checks import tensor_bytes
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
        proto: the model; it is not changed.

    Yields:
        The model without these weights, and the folder of the file; the model itself and None
        where they are few, where the disk is full, and on systems that let go of no open file.
    """
    large = {t.name for t in proto.graph.initializer if _large(t)}
    size = sum(tensor_bytes(t) for t in proto.graph.initializer if t.name in large)
    with ExitStack() as stack:
        found: tuple[ModelProto, Path | None] = proto, None
        if os.name == "posix" and size >= _WORTH:
            try:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                found = _written(proto, large, folder / _NAME), folder
            except OSError:  # it takes more memory, and works
                pass
        yield found


def _large(tensor: TensorProto) -> bool:
    return (
        tensor.HasField("raw_data")
        and not uses_external_data(tensor)
        and tensor_bytes(tensor) >= _TENSOR
    )


def _written(proto: ModelProto, large: set[str], path: Path) -> ModelProto:
    """A copy of a model whose large weights are in a file."""
    light = without_initializers(proto)
    with path.open("wb") as file:
        for tensor in proto.graph.initializer:
            copy = light.graph.initializer.add()
            if tensor.name not in large:
                copy.CopyFrom(tensor)
                continue
            values = tensor.raw_data
            copy.name, copy.data_type = tensor.name, tensor.data_type
            copy.dims.extend(tensor.dims)
            copy.data_location = TensorProto.EXTERNAL
            place = {"location": _NAME, "offset": file.tell(), "length": len(values)}
            for key, value in place.items():
                copy.external_data.add(key=key, value=str(value))
            file.write(values)
            file.write(bytes(-file.tell() % _PAGE))
    return light
