from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from onnx_lowrank.lazily import lazy


@dataclass(frozen=True)
class Square:
    side: float
    asked: list[float] = field(default_factory=list)

    @lazy
    def area(self) -> float:
        """The side squared."""
        self.asked.append(self.side)
        return self.side**2


def test_computed_once_for_each_instance() -> None:
    two, three = Square(2.0), Square(3.0)
    assert not two.asked
    assert [two.area, two.area, three.area, three.area] == [4.0, 4.0, 9.0, 9.0]
    assert (two.asked, three.asked) == ([2.0], [3.0])
    assert Square.area.__doc__ == "The side squared."


def test_instances_do_not_wait_for_each_other() -> None:
    together = threading.Barrier(2, timeout=20)

    class Waiting:
        @lazy
        def place(self) -> int:
            return together.wait()

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lambda w: w.place, [Waiting(), Waiting()])) == [0, 1]
