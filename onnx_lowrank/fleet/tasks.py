"""Tasks: the models of a fleet, each with its data, its options, and the name of its result.

Options of a task are JSON values by the names of keyword arguments, as the command line or a
manifest writes them, so that they travel to other processes and machines and have a digest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.errors import LowRankError, OptionError
from onnx_lowrank.options import Option, from_keywords, options_of
from onnx_lowrank.planning.targets import Target

__all__ = [
    "Task",
    "anchored",
    "as_keywords",
    "check_options",
    "check_output_name",
    "names_code",
    "of_folder",
]

#: data that belongs to a model is beside it, under its name with one of these endings
_BESIDE = (".npz", ".npy")


@dataclass(frozen=True)
class Task:
    """One model to compress.

    Attributes:
        name: of the model, for people: its path from the folder or as the manifest has it.
        model: absolute path of the model.
        output: name of the result, relative to the folder of results, with ``/``.
        calibration: path of a file or folder, or ``file.py:function``; None without data.
        options: JSON values by option of ``compress``, without the data.
    """

    name: str
    model: Path
    output: str
    calibration: str | None
    options: Mapping[str, Any]


def of_folder(
    folder: Path, out: Path, calibration: str | None, options: Mapping[str, Any]
) -> list[Task]:
    """Every ``.onnx`` below a folder, in the order of their names.

    Hidden files and folders are passed over, and so are the folder of results and links to folders.

    Args:
        folder: that models are looked for in.
        out: the folder of results; a result has the place there that its model has in ``folder``.
        calibration: data of all models; None for that which is beside each, ``net.npz`` or
            ``net.npy`` beside ``net.onnx``.
        options: of all models.

    Raises:
        OptionError: there is no model.
    """
    found: list[Path] = []
    results = out.resolve()
    for place, folders, files in os.walk(folder, onerror=_unreadable):
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and Path(place, f).resolve() != results
        )
        found += [
            Path(place, f) for f in files if f.lower().endswith(".onnx") and not f.startswith(".")
        ]
    if not found:
        raise OptionError(f"{folder}: there is no .onnx file below it; name another folder")
    return [
        Task(
            model.relative_to(folder).as_posix(),
            model.absolute(),
            model.relative_to(folder).with_suffix(".onnx").as_posix(),
            calibration or _beside(model),
            options,
        )
        for model in sorted(found)
    ]


def check_output_name(name: str) -> str:
    """The name of a result in its plain form.

    Raises:
        ValueError: it leads out of the folder of results, or is not that of a model.
    """
    plain = PurePosixPath(name.replace("\\", "/"))
    parts = plain.parts
    if plain.is_absolute() or ".." in parts or ":" in name or plain.suffix != ".onnx":
        raise ValueError(f"{name!r}; write a name such as folder/net.onnx, below OUT")
    if any(part.startswith(".") for part in parts):
        raise ValueError(f"{name!r} is hidden; write a name such as folder/net.onnx")
    return plain.as_posix()


def anchored(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Options whose paths are absolute, so that they hold in processes elsewhere.

    Args:
        options: JSON values by name.
        folder: that relative paths begin at.
    """
    found = dict(options)
    for name, value in options.items():
        if names_code(value) or (name == "cache" and isinstance(value, str) and value):
            found[name] = str(folder.absolute() / value)
    return found


def names_code(value: Any) -> bool:
    """Whether an option is a function of the user's, as ``file.py:function``."""
    return isinstance(value, str) and ".py:" in value


def as_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as keyword arguments of ``compress``.

    Args:
        options: JSON values by name. Texts are read as those of the command line are.

    Raises:
        OptionError: there is no such option, or a text cannot be read.
        DataError: a function of the user's cannot be loaded.
    """
    known = options_of(CompressOptions)
    found: dict[str, Any] = {}
    for name, value in options.items():
        about: Option | None = known[name][1].metadata["option"] if name in known else None
        read = None if about is None else about.read
        repeated = about is not None and about.repeat
        texts = [value] if repeated and isinstance(value, str) else value
        is_text = _texts(texts) if repeated else isinstance(texts, str)
        try:
            found[name] = read(texts) if read is not None and is_text else value
        except LowRankError:
            raise
        except ValueError as error:
            raise OptionError(f"option {name}: {error}") from None
    return found


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that make no sense for any model, before a process is started for one.

    Functions of the user's are not loaded.

    Raises:
        OptionError: as said.
    """
    plain = {k: v for k, v in options.items() if not names_code(v)}
    try:
        keywords = as_keywords(plain)
        if names_code(options.get("metric")):
            keywords["metric"] = _stand_in
        made = from_keywords(CompressOptions, keywords)
        made.job()
        searching = made.keep.requirement() is not None
        Target.parse(made.target.target, made.target.ranks, search=searching)
    except LowRankError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise OptionError(
            f"the options {json.dumps(plain)} cannot be used ({error}); write their values as "
            "docs/options.md has them"
        ) from error


def _stand_in(outputs: Any, labels: Any) -> float:
    """A metric where the user's own is not loaded."""
    raise NotImplementedError(outputs, labels)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _beside(model: Path) -> str | None:
    beside = (model.with_suffix(suffix) for suffix in _BESIDE)
    return next((str(path.absolute()) for path in beside if path.is_file()), None)


def _unreadable(error: OSError) -> None:
    raise OptionError(
        f"{error.filename}: cannot be read ({error.strerror}); give a folder that can be read"
    )
