from __future__ import annotations

from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.rounded import Rounded, with_rounding


def candidate(method: str, parameters: int, error: float = 0.1) -> Candidate:
    return Candidate(method, "", parameters, error, parameters, parameters, parameters, parameters)


KEEP = candidate("", 100, 0.0)
CHOICE = Choice("a", (KEEP, candidate("svd", 10), candidate("svd", 40), candidate("cp", 20)))


def test_what_was_measured_is_added_to_the_nearest_of_its_form() -> None:
    rounded = Rounded()
    rounded.add(candidate("svd", 8), 0.5)
    rounded.add(candidate("svd", 40), 0.2)
    (choice,) = with_rounding([CHOICE], {"a": rounded})
    assert [c.error for c in choice.candidates] == [0.0, 0.6, 0.1 + 0.2, 0.1]
    assert rounded.known(candidate("svd", 8))
    assert not rounded.known(candidate("svd", 10))


def test_layers_of_which_nothing_is_known_stay() -> None:
    assert with_rounding([CHOICE], {"b": Rounded(), "a": Rounded()}) == [CHOICE]
