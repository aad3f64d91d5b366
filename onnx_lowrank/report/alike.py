"""Names that differ in numbers alone, as one pattern: the blocks of a deep model in one row."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

__all__ = ["alike", "kind_of", "pattern"]

T = TypeVar("T")

_NUMBER = re.compile(r"\d+")
_REPEATED = re.compile(r"_\d+$")


def kind_of(name: str) -> str:
    """A name without its numbers, the same for all of its kind.

    Exporters number what has a name already (``conv``, ``conv_1``, ``conv_2``), so that a number
    at the end does not make another kind.
    """
    return _NUMBER.sub("#", _REPEATED.sub("", name))


def alike(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items with the same key together, in the order in which keys come first."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def pattern(names: Sequence[str]) -> str:
    """Names of one kind as one: ``layer.{0..11}/fc1``, where two differ ``layer.{0,1}/fc1``.

    A number in braces runs from the least to the greatest; not all between need be there.

    Args:
        names: one or more of the same :func:`kind_of`.
    """
    if len(set(names)) == 1:
        return names[0]
    ended = [_REPEATED.search(name) for name in names]
    if any(ended) and not all(ended):  # the first of those that were numbered has no number
        stems = [_REPEATED.sub("", name) for name in names]
        return f"{pattern(stems)}*"
    numbers = [_NUMBER.findall(name) for name in names]
    if len({len(row) for row in numbers}) > 1:
        return f"{names[0]} .. {names[-1]}"
    texts = _NUMBER.split(names[0])
    slots = [_numbers(column) for column in zip(*numbers, strict=True)]
    return "".join(t + s for t, s in zip(texts, [*slots, ""], strict=True))


def _numbers(texts: Sequence[str]) -> str:
    """Numbers at one place of names."""
    found = sorted(set(texts), key=lambda text: (int(text), text))
    if len(found) == 1:
        return found[0]
    return "{" + (",".join(found) if len(found) == 2 else f"{found[0]}..{found[-1]}") + "}"
