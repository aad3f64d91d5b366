"""Globs by which the user names layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from onnx_lowrank.errors import OptionError

__all__ = ["check_globs", "matches", "selected"]

#: number of names that a message lists
_LISTED = 8


def matches(name: str, globs: Iterable[str]) -> bool:
    """Whether any of the globs matches the name of a layer; case counts."""
    return any(fnmatchcase(name, glob) for glob in globs)


def selected(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """The reason why the user's globs leave a layer out; None where they do not."""
    if include and not matches(name, include):
        return "not named by --include"
    if matches(name, exclude):
        return "excluded by --exclude"
    return None


def check_globs(option: str, globs: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a glob that matches no layer: it is mistyped, and would do nothing.

    Args:
        option: name of the option that gave the globs.
        globs: the globs; each must match some layer.
        names: names of all layers, including those that cannot be compressed.

    Raises:
        OptionError: a glob matches no layer; the message names layers with similar names.
    """
    for glob in globs:
        if any(fnmatchcase(name, glob) for name in names):
            continue
        lower = {name.lower(): name for name in reversed(names)}
        near = [lower[n] for n in get_close_matches(glob.strip("*?").lower(), lower, 3, 0.5)]
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        else:
            listed = ", ".join(names[:_LISTED]) + (" ..." if len(names) > _LISTED else "")
            hint = f"the layers are {listed}" if names else "the model has no layers"
        raise OptionError(
            f"{option} {glob!r} matches no layer; {hint} (`onnx-lowrank inspect` lists all)"
        )
