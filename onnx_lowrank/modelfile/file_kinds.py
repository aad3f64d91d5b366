"""Kinds of files that are given by mistake, recognised by their first bytes.

No ONNX model begins like any of these, so a message can name the kind and the remedy instead of
the error of a parser.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["OtherKind", "other_kind"]

#: number of bytes that are read from a file
_HEAD = 512
_POINTER = rb"version https://git-lfs"


class OtherKind(NamedTuple):
    """Kind of a file, with the remedy.

    Attributes:
        name: name of the kind, with its article.
        remedy: advice, whatever the file was given for; empty where it must be converted.
        exporter: tool that makes an ONNX model of such a file.
    """

    name: str
    remedy: str = ""
    exporter: str = ""

    def as_model(self) -> str:
        """The kind and the remedy, where an ONNX model is wanted."""
        return f"{self.name}; {self.remedy or f'export it to ONNX first, with {self.exporter}'}"

    def as_data(self) -> str:
        """The kind and the remedy, where an array file is wanted."""
        return f"{self.name}; {self.remedy or 'write its arrays with numpy.savez or numpy.save'}"


_UNPACK = "unpack it first"
_TORCH = "torch.onnx.export"

_KINDS: tuple[tuple[bytes, OtherKind], ...] = (
    (_POINTER,
     OtherKind("a git-lfs pointer", "fetch the file itself with: git lfs pull")),
    (rb"PK\x03\x04.*(data\.pkl|/version|/byteorder|/\.data|\.format_version)",
     OtherKind("a PyTorch file", "", _TORCH)),
    (rb"PK\x03\x04.*(metadata|config)\.json", OtherKind("a Keras file", "", "tf2onnx")),
    (rb"PK\x03\x04.*\.npy",
     OtherKind("an archive of NumPy arrays", "give it as data, with the suffix .npz")),
    (rb"PK(\x03\x04|\x05\x06|\x07\x08)", OtherKind("a zip archive", _UNPACK)),
    (rb"\x1f\x8b", OtherKind("compressed by gzip", f"{_UNPACK} (gunzip, or tar -xzf)")),
    (rb"BZh[1-9]", OtherKind("compressed by bzip2", _UNPACK)),
    (rb"\xfd7zXZ", OtherKind("compressed by xz", _UNPACK)),
    (rb"\x28\xb5\x2f\xfd", OtherKind("compressed by zstd", _UNPACK)),
    (rb"7z\xbc\xaf", OtherKind("a 7z archive", _UNPACK)),
    (rb".{257}ustar", OtherKind("a tar archive", _UNPACK)),
    (rb"(\xef\xbb\xbf)?\s*<[!?a-zA-Z]",
     OtherKind("a web page or XML", "download the file itself, not the page that links to it")),
    # flatbuffers begin with an offset that fits into two bytes, then have a name
    (rb"..\x00\x00ORTM",
     OtherKind("a model in ONNX Runtime's own format (.ort)",
               "give the ONNX model that it was made from")),
    (rb"..\x00\x00TFL3", OtherKind("a TensorFlow Lite model", "", "tf2onnx --tflite")),
    (rb"\x80[\x02-\x05]", OtherKind("a pickle, as PyTorch and others write", "", _TORCH)),
    (rb"\x89HDF\r\n", OtherKind("an HDF5 file, as Keras writes", "", "tf2onnx")),
    (rb".{4}\x00{4}\{",
     OtherKind("a safetensors file: weights without a graph", "",
               "the framework of the weights")),
    (rb"GGUF",
     OtherKind("a GGUF file: weights without an ONNX graph", "",
               "the framework of the weights")),
    (rb"\x08\x01\x12[\x80-\xff]*[\x00-\x7f]\n",
     OtherKind("a TensorFlow SavedModel", "", "tf2onnx")),
    (rb"\n[\x80-\xff]*[\x00-\x7f]\n",
     OtherKind("a TensorFlow graph or other protobuf", "", "tf2onnx")),
    (rb"\x93NUMPY", OtherKind("a NumPy array", "give it as data, with the suffix .npy")),
    (rb"%PDF|\x89PNG|\xff\xd8\xff|GIF8", OtherKind("a picture or document", "name another file")),
    (rb"\s*[{\[]", OtherKind("JSON or other text", "give the binary file")),
)  # fmt: skip


def other_kind(path: Path, wanted: bytes | None = None) -> OtherKind | None:
    """Recognise the kind of the file at ``path`` by its first bytes.

    Args:
        path: path of the file.
        wanted: first bytes of the wanted kind; a file that begins so has no other kind.

    Returns:
        The kind; None where it is not recognised, or the file cannot be read.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for somebody to write to it
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except (OSError, ValueError):
        return None
    if not head:
        return OtherKind("an empty file", "copy it again")
    if wanted is not None and head.startswith(wanted):
        return None
    return next((kind for pattern, kind in _KINDS if re.match(pattern, head, re.DOTALL)), None)
