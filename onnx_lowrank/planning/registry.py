"""Registry of passes: the built-in ones, then those of other packages.

A package adds passes by the entry-point group ``onnx_lowrank.passes``; each entry is a
:class:`~onnx_lowrank.passkit.base.Pass` class. A pass is written with its options as
``spatial_svd{split=vh,metric=identity}``; dashes and underscores are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from onnx_lowrank.errors import LowRankError, OptionError
from onnx_lowrank.passes import BUILT_IN
from onnx_lowrank.passkit.base import (
    Factorization,
    HeadNarrowing,
    Pass,
    Pruning,
    PruningOptions,
    Rewrite,
)

__all__ = ["GROUP", "Passes", "available", "parse", "parse_list", "pass_class"]

GROUP = "onnx_lowrank.passes"

_SPEC = re.compile(r"^(?P<name>[A-Za-z0-9_-]+)(?:\{(?P<options>[^{}]*)\})?$")
_SEPARATOR = re.compile(r",(?![^{]*\})")


def available() -> dict[str, type[Pass]]:
    """Map the names of all installed passes to their classes.

    Raises:
        OptionError: an entry point cannot be loaded or is not a pass, or its name is taken.
    """
    found = {p.name: p for p in BUILT_IN}
    for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        try:
            cls = entry.load()
        except Exception as error:
            raise OptionError(
                f"entry point {entry.name!r} ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}; mend or uninstall its package"
            ) from error
        if not (isinstance(cls, type) and issubclass(cls, Pass)):
            raise OptionError(
                f"entry point {entry.name!r} ({entry.value}) is not a subclass of "
                "onnx_lowrank.Pass; mend or uninstall its package"
            )
        if cls.name in found:
            raise OptionError(
                f"pass {cls.name!r} of {entry.value} has the name of another pass; rename it or "
                "uninstall its package"
            )
        found[cls.name] = cls
    return found


def pass_class(name: str, passes: Mapping[str, type[Pass]] | None = None) -> type[Pass]:
    """Find a pass by name, among all installed ones or among ``passes``.

    Raises:
        OptionError: there is no pass of that name.
    """
    passes = available() if passes is None else passes
    cls = passes.get(name.replace("-", "_"))
    if cls is None:
        raise OptionError(f"no pass named {name!r}; choose from {', '.join(passes)}")
    return cls


def parse(spec: str, passes: Mapping[str, type[Pass]] | None = None) -> Pass:
    """Make a pass from its spec, among all installed ones or among ``passes``.

    Raises:
        OptionError: the pass or an option is unknown, or a value has the wrong type.
    """
    match = _SPEC.match(spec.strip())
    if match is None:
        raise OptionError(f"cannot read pass {spec!r}; write name or name{{option=value,...}}")
    cls = pass_class(match["name"], passes)
    known = {f.name: f.default for f in fields(cls)}
    values: dict[str, Any] = {}
    for item in filter(None, (match["options"] or "").split(",")):
        key, equals, text = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key not in known:
            raise OptionError(
                f"{cls.name} has no option {key!r}; it has {', '.join(known) or 'none'}"
            )
        values[key] = _value(cls, key, text.strip(), known[key])
    try:
        return cls(**values)
    except LowRankError:
        raise
    except Exception as error:
        raise OptionError(f"{spec}: {error}; give {cls.name} other options") from error


class Passes(NamedTuple):
    """Passes by kind, each kind in the order given."""

    rewrites: list[Rewrite]
    factorizations: list[Factorization]
    prunings: list[Pruning]
    narrowings: list[HeadNarrowing]

    @property
    def specs(self) -> tuple[str, ...]:
        """Specs of all the passes, rewrites first."""
        return tuple(p.spec for kind in self for p in kind)

    @property
    def cutting(self) -> PruningOptions | None:
        """How channels are taken out, of groups and of heads; None where no pass does."""
        optional = all(p.optional for p in self.narrowings)
        if self.prunings:
            options = self.prunings[0].options
            return replace(options, optional=options.optional and optional)
        if not self.narrowings:
            return None
        return PruningOptions(True, "parallel", gather=False, keep=0.0, optional=optional)


def parse_list(text: str | Sequence[str | Pass]) -> Passes:
    """Make passes from ``svd,spatial_svd{split=vh}``, or from a sequence of specs and passes."""
    items: Sequence[str | Pass] = _SEPARATOR.split(text) if isinstance(text, str) else text
    known = available()  # looks through all that is installed
    passes = [p if isinstance(p, Pass) else parse(p, known) for p in items]
    found = Passes(
        [p for p in passes if isinstance(p, Rewrite)],
        [p for p in passes if isinstance(p, Factorization)],
        [p for p in passes if isinstance(p, Pruning)],
        [p for p in passes if isinstance(p, HeadNarrowing)],
    )
    whole = next((p for p in found.prunings[:1] if p.options.heads), None)
    if whole is not None and found.narrowings:
        raise OptionError(
            f"{whole.name}{{heads=true}} takes out heads that {found.narrowings[0].name} makes "
            "narrower; leave one of them out"
        )
    return found


def _value(cls: type[Pass], key: str, text: str, default: Any) -> Any:
    choices = getattr(cls, "choices", {}).get(key)
    if choices is not None and text not in choices:
        raise OptionError(f"{cls.name}: {key} is {text!r}; choose from {', '.join(choices)}")
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise OptionError(f"{cls.name}: {key} is {text!r}; it should be true or false")
        return text.lower() == "true"
    try:
        return type(default)(text)
    except (TypeError, ValueError):
        raise OptionError(
            f"{cls.name}: {key} is {text!r}; it should be of type {type(default).__name__}"
        ) from None
