"""Loading of models: what a file must be, and that its external data is where it says."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile.checks import sound, tensor_bytes
from onnx_lowrank.modelfile.external_data import check
from onnx_lowrank.modelfile.file_kinds import other_kind
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.protobuf import all_tensors

__all__ = ["load"]

#: Largest possible size of a protobuf, in bytes.
LARGEST_FILE = 1 << 31


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
