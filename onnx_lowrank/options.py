"""Options, each declared once: keyword arguments, command line and reference derive from it.

An option is a field of a frozen dataclass, made by :func:`option`, with its default, help and unit.
Fields that belong together form an :class:`OptionGroup`. The options of a command are a dataclass
whose fields are groups; they are given and named flat, as if the groups were not there::

    @dataclass(frozen=True)
    class Drawing(OptionGroup):
        title: ClassVar[str] = "samples"
        seed: int = option(0, "Random seed of every draw.")

    @dataclass(frozen=True)
    class Options:
        drawing: Drawing = Drawing()

    from_keywords(Options, {"seed": 3})               # Options(Drawing(seed=3))
    add_arguments(parser, Options)                    # --seed N
    keywords_from(Options, parser.parse_args(...))    # {"seed": 3}
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar, get_type_hints

from onnx_lowrank.errors import OptionError

__all__ = [
    "Option",
    "OptionGroup",
    "add_arguments",
    "documented",
    "flag_of",
    "from_keywords",
    "keywords_from",
    "option",
    "options_of",
    "shown",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """What is known of one option beside its name, type and default.

    Attributes:
        help: one sentence or two for people, with the unit and an example where it helps.
        metavar: what stands for the value on the command line; empty for a switch.
        read: turns the text of the command line (the list of texts where ``repeat``) into the
            value, and raises ValueError with the remedy where it cannot; None leaves the text
            alone.
        choices: the texts that are allowed; empty where it is not a choice among a few.
        repeat: whether it may be given several times on the command line.
        flag: its name on the command line, where that is not the field's name with dashes.
        short: another, of one letter.
        needed: whether the command line must have it.
    """

    help: str
    metavar: str = ""
    read: Callable[[Any], Any] | None = None
    choices: tuple[str, ...] = ()
    repeat: bool = False
    flag: str = ""
    short: str = ""
    needed: bool = False


def option(default: Any, help: str, **more: Any) -> Any:  # noqa: A002 - as argparse calls it
    """A field of an :class:`OptionGroup`.

    Args:
        default: its value where nothing is given; immutable.
        help: what the option is, for people.
        more: the other attributes of :class:`Option`.
    """
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True)
class OptionGroup:
    """Options that belong together; ``__post_init__`` refuses values that make no sense.

    Attributes:
        title: heading of the group in help and reference.
    """

    title: ClassVar[str] = ""


def options_of(cls: type[Any]) -> dict[str, tuple[type[OptionGroup], Field[Any]]]:
    """The options of a command by name, each with the group that it belongs to, in order."""
    if issubclass(cls, OptionGroup):
        return {f.name: (cls, f) for f in fields(cls)}
    found: dict[str, tuple[type[OptionGroup], Field[Any]]] = {}
    for group in _groups(cls).values():
        found.update(options_of(group))
    return found


def from_keywords(cls: type[T], values: Mapping[str, Any]) -> T:
    """The options of a command, from flat keyword arguments.

    Args:
        cls: a dataclass of groups, or one group.
        values: by name; what is left out keeps its default.

    Raises:
        OptionError: there is no option of that name, or its value makes no sense.
    """
    known = options_of(cls)
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise OptionError(f"there is no option {name!r}{hint}")
    return _built(cls, values)


def add_arguments(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Declare the options of a command on its parser, group by group."""
    for group in _groups(cls).values():
        section = parser.add_argument_group(group.title) if group.title else parser
        for f in fields(group):
            about = _about(f)
            names = [about.short, flag_of(f)] if about.short else [flag_of(f)]
            section.add_argument(*names, dest=f.name, **_settings(f, about))


def keywords_from(cls: type[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What was given on the command line for the options of a command, as keyword arguments.

    Raises:
        OptionError: a text cannot be read.
    """
    values = {}
    for name, (_, f) in options_of(cls).items():
        text = getattr(arguments, name, None)
        if text is None or (text is False and f.default is False):
            continue
        read = _about(f).read
        try:
            values[name] = text if read is None else read(text)
        except OptionError:
            raise
        except ValueError as error:
            raise OptionError(f"{flag_of(f)} {error}") from None
    return values


def documented(cls: type[Any]) -> Callable[[F], F]:
    """Give a function that takes ``**keywords`` the signature and the reference of its options.

    Its docstring has a line ``{options}``, in the place of which they are listed.
    """

    def decorate(function: F) -> F:
        own = inspect.signature(function)
        kept = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=f.default)
            for n, (_, f) in options_of(cls).items()
        ]
        function.__signature__ = own.replace(parameters=[*kept, *made])  # type: ignore[attr-defined]
        if function.__doc__:  # python -OO has none
            lines = [f"{n}: {_about(f).help}" for n, (_, f) in options_of(cls).items()]
            function.__doc__ = function.__doc__.replace("{options}", ("\n" + " " * 12).join(lines))
        return function

    return decorate


def _groups(cls: type[Any]) -> dict[str, type[OptionGroup]]:
    """Groups of a command by the name of their field; a group alone is its only one."""
    if issubclass(cls, OptionGroup):
        return {"": cls}
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls) if is_dataclass(hints[f.name])}


def _built(cls: type[T], values: Mapping[str, Any]) -> T:
    groups = _groups(cls)
    made = {
        place: group(**{f.name: values[f.name] for f in fields(group) if f.name in values})
        for place, group in groups.items()
    }
    return made[""] if "" in made else cls(**made)  # type: ignore[return-value]


def _about(f: Field[Any]) -> Option:
    about: Option = f.metadata["option"]
    return about


def flag_of(f: Field[Any]) -> str:
    """The name of an option on the command line."""
    return _about(f).flag or "--" + f.name.replace("_", "-")


def _settings(f: Field[Any], about: Option) -> dict[str, Any]:
    """Keyword arguments of ``add_argument``; defaults stay with the dataclass."""
    text = about.help.replace("%", "%%")
    if f.default is False:
        return {"action": "store_true", "help": text}
    default = "" if "default" in text else shown(f.default).replace("%", "%%")
    settings: dict[str, Any] = {
        "help": text + (f" Default: {default}." if default else ""),
        "default": None,
    }
    if about.choices:
        settings["choices"] = about.choices
    elif about.metavar:
        settings["metavar"] = about.metavar
    if about.needed:
        settings["required"] = True
    if about.repeat:
        settings["action"] = "append"
    elif about.read in (int, float):
        settings["type"] = about.read
    elif about.read is None and type(f.default) in (int, float):
        settings["type"] = type(f.default)
    return settings


def shown(value: Any) -> str:
    """A default as text; empty where there is nothing to show."""
    if value in (None, MISSING, "", (), False):
        return ""
    parts: Sequence[Any] = value if isinstance(value, tuple) else (value,)
    return ",".join(f"{p:g}" if isinstance(p, float) else str(p) for p in parts)
