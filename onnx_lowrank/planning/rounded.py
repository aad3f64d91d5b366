"""Candidates whose errors hold what int8 adds, as far as chains have been cut to tell.

Rounding depends on the weights of a chain, which candidates do not have. So it is measured of
chains that a plan has chosen, and what a form of a method loses at one rank is taken for its other
ranks until they are measured too; a form that was never chosen counts as losing nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnx_lowrank.chains.chain import Rank
from onnx_lowrank.planning.candidates import Candidate, Choice
from onnx_lowrank.planning.plan import Decision

__all__ = ["Rounded", "with_rounding"]


@dataclass(frozen=True)
class Rounded:
    """What int8 costs chains of one layer, more than it costs the layer as it is.

    Attributes:
        errors: number of parameters and relative response error by rank, by method and form.
    """

    errors: dict[tuple[str, str], dict[Rank, tuple[int, float]]] = field(default_factory=dict)

    def known(self, of: Candidate | Decision) -> bool:
        """Whether the very chain was measured."""
        return of.rank in self.errors.get((of.method, of.variant), {})

    def add(self, of: Candidate | Decision, error: float) -> None:
        """Keep what was measured of a chain."""
        self.errors.setdefault((of.method, of.variant), {})[of.rank] = of.parameters, error

    def error(self, of: Candidate) -> float:
        """What int8 adds to the error of a chain.

        Of a chain that was not measured it is that of the one nearest in parameters among those of
        its method and form that were; 0 where none was.
        """
        found = self.errors.get((of.method, of.variant), {})
        if of.rank in found:
            return found[of.rank][1]
        near = min(found.values(), key=lambda f: (abs(f[0] - of.parameters), f), default=(0, 0.0))
        return near[1]


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
