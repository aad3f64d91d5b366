"""Manifests: the models of a fleet as JSON Lines, or as one JSON list.

Each entry is an object, as ``manifest.schema.json`` has it::

    {"model": "a/net.onnx", "calibration": "a/net.npz", "output": "net.onnx",
     "options": {"target": "macs=0.5", "samples": 200}}

Only ``model`` is needed. Paths begin at the folder of the manifest. Options are those of
``compress`` by the names that they have in Python, with values as there or as on the command line;
they go before those of the command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import LowRankError, OptionError
from onnx_lowrank.fleet.tasks import Task, anchored, check_options, check_output_name

__all__ = ["of_manifest"]

_KEYS = ("model", "calibration", "output", "options")
_FORM = 'write objects such as {"model": "net.onnx"}, one a line or all in one list'


def of_manifest(path: Path, calibration: str | None, options: Mapping[str, Any]) -> list[Task]:
    """The tasks of a manifest, in its order.

    Args:
        path: path of the manifest.
        calibration: data of entries that name none.
        options: of all entries; those of an entry go before.

    Raises:
        OptionError: the manifest cannot be read, or an entry makes no sense; the message names its
            line and the remedy.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise OptionError(
            f"{path}: cannot be read ({why}); give a folder of models or a manifest"
        ) from error
    tasks: list[Task] = []
    lines: dict[str, int] = {}
    for line, entry in _entries(text, path):
        where = f"{path}, line {line}"
        try:
            task = _task(entry, path.absolute().parent, calibration, options)
        except LowRankError as error:
            raise OptionError(f"{where}: {error}") from error
        except ValueError as error:
            raise OptionError(f"{where}: {error}") from None
        if task.output in lines:
            raise OptionError(
                f"{where}: line {lines[task.output]} writes {task.output!r} too; give one of them "
                "another output"
            )
        lines[task.output] = line
        tasks.append(task)
    if not tasks:
        raise OptionError(f"{path}: has no entry; {_FORM}")
    return tasks


def _entries(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Each entry with the number of the line that it begins on."""
    decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
    if not text.lstrip().startswith("["):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                entry, end = _decoded(decoder, line, 0, number, path)
                if line[end:].strip():
                    raise OptionError(f"{path}, line {number}: more than one entry; {_FORM}")
                yield number, entry
        return
    place = _skipped(text, text.index("[") + 1)
    while text[place : place + 1] != "]":
        number = text.count("\n", 0, place) + 1
        entry, place = _decoded(decoder, text, place, number, path)
        yield number, entry
        place = _skipped(text, place)
        if text[place : place + 1] == ",":
            place = _skipped(text, place + 1)
        elif text[place : place + 1] != "]":
            number = text.count("\n", 0, place) + 1
            raise OptionError(f"{path}, line {number}: expected a comma or ]; {_FORM}")
    if text[place + 1 :].strip():
        raise OptionError(f"{path}: goes on after its list; {_FORM}")


def _decoded(
    decoder: json.JSONDecoder, text: str, place: int, line: int, path: Path
) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, _skipped(text, place))
    except json.JSONDecodeError as error:
        # of a line alone, the error counts lines from the start of that line
        number = error.lineno if text.count("\n") else line
        raise OptionError(
            f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); {_FORM}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{path}, line {line}: {error}; {_FORM}") from None


def _skipped(text: str, place: int) -> int:
    found = re.compile(r"\s*").match(text, place)
    return place if found is None else found.end()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is given twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number of JSON")


def _task(entry: Any, folder: Path, calibration: str | None, options: Mapping[str, Any]) -> Task:
    if not isinstance(entry, dict):
        raise ValueError(f"the entry is {json.dumps(entry)[:60]}, not an object; {_FORM}")
    if unknown := [key for key in entry if key not in _KEYS]:
        raise ValueError(f"there is no {unknown[0]!r}; an entry has {', '.join(_KEYS)}")
    for key in ("model", "calibration", "output"):
        if key in entry and not (isinstance(entry[key], str) and entry[key].strip()):
            raise ValueError(f"{key} is {json.dumps(entry[key])[:60]}; write a name in quotes")
    if "model" not in entry:
        raise ValueError('names no model; add the path of one as "model"')
    own = entry.get("options", {})
    if not isinstance(own, dict):
        raise ValueError(f"options are {json.dumps(own)[:60]}; write an object, name by name")
    if "calib" in own:
        raise ValueError("the data stand in calibration, beside the options")
    if "scheduler" in own:
        raise ValueError("a scheduler is that of the whole batch; give it to the command")
    merged = {**options, **anchored(own, folder)}
    check_options(merged)
    model = folder / entry["model"]
    given = entry.get("calibration")
    data = calibration if given is None else str(folder / given)
    return Task(entry["model"], model, _output(entry, folder, model), data, merged)


def _output(entry: Mapping[str, Any], folder: Path, model: Path) -> str:
    """The name that is asked for; else the model's place beside the manifest, or its bare name."""
    if "output" in entry:
        return check_output_name(entry["output"])
    named = model.with_suffix(".onnx")
    try:
        return check_output_name(named.relative_to(folder).as_posix())
    except ValueError:
        return check_output_name(named.name)
