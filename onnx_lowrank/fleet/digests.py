"""Digests by which a journal knows whether a task is still the one that was done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper

from onnx_lowrank._version import __version__
from onnx_lowrank.fleet.tasks import Task, names_code
from onnx_lowrank.modelfile.protobuf import all_tensors

__all__ = ["data_digest", "key_of", "model_digest"]


def key_of(task: Task, model: str, data: str) -> str:
    """SHA-256 of all that a task's result depends on, hexadecimal.

    Args:
        task: the task; where its files lie does not matter, only what is in them.
        model: digest of the model with its values.
        data: digest of its data; empty without.
    """
    options = {k: _with_code(v) for k, v in task.options.items() if k != "cache"}
    parts = [__version__, task.output, model, data, options]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def model_digest(path: Path) -> str:
    """SHA-256 of a model file and of the files with its values; of what is there of them."""
    found = hashlib.sha256()
    _add_file(found, path)
    for location in _locations(path):
        found.update(b"\0" + location.encode() + b"\0")
        _add_file(found, path.parent / location)
    return found.hexdigest()


def data_digest(named: str | None) -> str:
    """SHA-256 of a file or of all files of a folder; of ``file.py:function`` that of the file.

    Empty without data.
    """
    if named is None:
        return ""
    found = hashlib.sha256()
    path = Path(named)
    if path.is_dir():
        for folder_, folders, files in os.walk(path):
            folders.sort()
            for file in sorted(files):
                inner = Path(folder_, file)
                found.update(inner.relative_to(path).as_posix().encode() + b"\0")
                _add_file(found, inner)
        return found.hexdigest()
    if names_code(named):
        code, _, function = named.rpartition(":")
        found.update(function.encode() + b"\0")
        path = Path(code)
    _add_file(found, path)
    return found.hexdigest()


def _with_code(value: Any) -> Any:
    """An option; of a function of the user's the text of its file, wherever that lies."""
    if not names_code(value):
        return dict(value) if isinstance(value, Mapping) else value
    return data_digest(value)


def _add_file(found: Any, path: Path) -> None:
    """Add a file; one that cannot be read counts as absent, and its worker says why."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                while part := file.read(1 << 20):
                    found.update(part)
            return
    except OSError:
        pass
    found.update(b"absent")


def _locations(path: Path) -> list[str]:
    """Names of the files with a model's values; none where the model cannot be read."""
    proto = onnx.ModelProto()
    try:
        if not path.is_file() or path.stat().st_size >= 1 << 31:
            return []
        proto.ParseFromString(path.read_bytes())
        outside = filter(external_data_helper.uses_external_data, all_tensors(proto))
        entries = (entry for tensor in outside for entry in tensor.external_data)
        return sorted({entry.value for entry in entries if entry.key == "location"})
    except (OSError, DecodeError, ValueError, TypeError, RecursionError):
        return []
