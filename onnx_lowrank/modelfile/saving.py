"""Saving of models, atomically, with their weights where the original has them.

Opset, IR version and metadata are kept. External data is copied in small parts: a model may be
larger than memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import onnx
from onnx import TensorProto, external_data_helper

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.atomic_files import atomic_write, atomic_writes
from onnx_lowrank.modelfile.external_data import Place, layout, place, refer
from onnx_lowrank.modelfile.model import LARGEST_PROTO, SMALLEST_EXTERNAL, Model

__all__ = ["check_output", "save"]


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
