"""Candidates whose errors hold what int8 adds, as far as chains have been cut to tell.

Rounding depends on the weights of a chain, which candidates do not have. So it is measured of
chains that a plan has chosen, and what a form of a method loses at one rank is taken for its other
ranks until they are measured too; a form that was never chosen counts as losing nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.plan import Decision

__all__ = ["Rounded", "with_rounding"]


@dataclass(frozen=True)
class Rounded:
    """What int8 costs chains of one layer, more than it costs the layer as it is.

    Attributes:
        errors: relative response errors, by method and form, then by number of parameters.
    """

    errors: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def known(self, of: Candidate | Decision) -> bool:
        """Whether the very chain was measured."""
        return of.parameters in self.errors.get((of.method, of.variant), {})

    def add(self, of: Candidate | Decision, error: float) -> None:
        """Keep what was measured of a chain."""
        self.errors.setdefault((of.method, of.variant), {})[of.parameters] = error

    def error(self, of: Candidate) -> float:
        """That of the chain of the same form that is nearest in parameters; 0 without one."""
        found = self.errors.get((of.method, of.variant))
        if not found:
            return 0.0
        return found[min(found, key=lambda p: (abs(p - of.parameters), p))]


def with_rounding(choices: Sequence[Choice], rounded: Mapping[str, Rounded]) -> list[Choice]:
    """The same choices with what int8 adds to the errors of chains, by the names of layers."""

    def added(choice: Choice) -> Choice:
        known = rounded.get(choice.layer)
        if known is None or not known.errors:
            return choice
        return replace(
            choice,
            candidates=tuple(replace(c, error=c.error + known.error(c)) for c in choice.candidates),
        )

    return [added(choice) for choice in choices]
