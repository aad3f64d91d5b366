"""Workers: others who run calls, so that one machine need not run them all."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Protocol, TypeVar

__all__ = ["Workers"]

S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")


class Workers(Protocol):
    """Processes that run calls and give back what the same calls would give here."""

    def answers(
        self, call: Callable[[S, A], R], shared: S, arguments: Iterable[A]
    ) -> Generator[R, None, None]:
        """Run a call for each argument, several at a time.

        Args:
            call: a function of a module; what it returns depends on its arguments alone.
            shared: first argument of every call. It is sent to each worker once, and may keep what
                it makes for the next call there, where one call runs at a time.
            arguments: second arguments; they are taken one by one, as there is room for them.

        Yields:
            The answers, in the order of the arguments. Closing the iterator gives up the rest.

        Raises:
            LowRankError: what a call raises, or what became of those who run it.
        """
        ...
