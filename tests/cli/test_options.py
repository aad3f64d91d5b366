"""Options declared once: keyword arguments, command line and documentation."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, dataclass
from typing import Any, ClassVar

import pytest

import onnx_lowrank
from onnx_lowrank.cli.main import COMMANDS
from onnx_lowrank.engine.options import CompressOptions, SweepOptions
from onnx_lowrank.errors import OptionError
from onnx_lowrank.option_values import fraction
from onnx_lowrank.options import (
    OptionGroup,
    add_arguments,
    documented,
    from_keywords,
    keywords_from,
    option,
    options_of,
)


@dataclass(frozen=True)
class Numbers(OptionGroup):
    """Options of several types."""

    title: ClassVar[str] = "numbers"

    count: int = option(3, "Number of things.", metavar="N")
    part: float = option(0.5, "A part, for instance 50%.", metavar="P", read=fraction)
    names: Sequence[str] = option((), "Names; may be repeated.", metavar="X", repeat=True)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError("count must be 1 or more")


@dataclass(frozen=True)
class Switches(OptionGroup):
    """Options without numbers."""

    way: str = option("left", "Where to.", choices=("left", "right"))
    loud: bool = option(False, "Make noise.", short="-l", flag="--noise")


@dataclass(frozen=True)
class Both:
    """Options of one command."""

    numbers: Numbers = Numbers()
    switches: Switches = Switches()


def read(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Both)
    return keywords_from(Both, parser.parse_args(list(words)))


def test_keywords_go_to_their_groups() -> None:
    made = from_keywords(Both, {"count": 5, "loud": True})
    assert made == Both(Numbers(count=5), Switches(loud=True))
    assert from_keywords(Both, {}) == Both()
    assert from_keywords(Numbers, {"part": 0.1}) == Numbers(part=0.1)
    with pytest.raises(FrozenInstanceError):
        made.numbers.count = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {}),
        (["--count", "7"], {"count": 7}),
        (["--part", "25%"], {"part": 0.25}),
        (["--names", "a", "--names", "b"], {"names": ["a", "b"]}),
        (["--way", "right", "-l"], {"way": "right", "loud": True}),
        (["--noise"], {"loud": True}),
    ],
)
def test_what_is_given_becomes_keywords(words: list[str], wanted: dict[str, Any]) -> None:
    assert read(*words) == wanted


def test_an_unknown_keyword_is_named_with_its_neighbour() -> None:
    with pytest.raises(OptionError, match=r"no option 'coumt'; did you mean count\?"):
        from_keywords(Both, {"coumt": 1})
    with pytest.raises(OptionError, match=r"there are count, part, names, way, loud"):
        from_keywords(Both, {"zzz": 1})


def test_values_are_checked_however_they_come() -> None:
    with pytest.raises(OptionError, match="count must be 1 or more"):
        from_keywords(Both, {"count": 0})
    with pytest.raises(OptionError, match=r"^--part '5' without a sign"):
        read("--part", "5")


def test_functions_have_the_signature_of_their_options() -> None:
    @documented(Both)
    def act(model: str, **keywords: Any) -> None:
        """Act.

        Args:
            model: the model.
            **keywords: options by name:
                {options}
        """

    names = list(inspect.signature(act).parameters)
    assert names == ["model", "count", "part", "names", "way", "loud"]
    assert "count: Number of things." in str(act.__doc__)
    assert "{options}" not in str(act.__doc__)


@pytest.mark.parametrize(
    ("function", "options"),
    [(onnx_lowrank.compress, CompressOptions), (onnx_lowrank.sweep, SweepOptions)],
)
def test_public_functions_document_every_option(function: Any, options: type[Any]) -> None:
    parameters = inspect.signature(function).parameters
    for name in options_of(options):
        assert name in parameters
        assert f"{name}: " in function.__doc__


def test_every_option_says_what_it_is() -> None:
    """A sentence of its own, with a full stop, and a metavar where it takes a value."""
    for command in COMMANDS.values():
        for options in command.options:
            for name, (group, f) in options_of(options).items():
                about = f.metadata["option"]
                assert about.help[0].isupper(), name
                assert about.help.endswith("."), name
                assert about.metavar or about.choices or f.default is False, name
                assert group.title, group
