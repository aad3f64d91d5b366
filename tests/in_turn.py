"""Workers that run calls in this process, on copies of what would be sent to others."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator, Iterable
from typing import Any

__all__ = ["InTurn"]


class InTurn:
    """Runs calls one after the other, each on one of several workers in turn.

    Args:
        workers: number of copies of what all calls share.

    Attributes:
        calls: number of calls that were run.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers, self.calls = workers, 0

    def answers(
        self, call: Callable[[Any, Any], Any], shared: Any, arguments: Iterable[Any]
    ) -> Generator[Any, None, None]:
        copies = [_sent(shared) for _ in range(self.workers)]
        for argument in arguments:
            mine = copies[self.calls % self.workers]
            self.calls += 1
            yield _sent(call(mine, _sent(argument)))


def _sent(value: Any) -> Any:
    """A copy of a value, whose arrays are read-only, as those in messages are."""
    buffers: list[pickle.PickleBuffer] = []
    text = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(text, buffers=[bytes(buffer) for buffer in buffers])
