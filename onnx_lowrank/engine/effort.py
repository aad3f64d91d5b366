"""How much is spent on finding a plan: one choice for a person, from seconds to minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnx_lowrank.errors import OptionError
from onnx_lowrank.planning.refit_modes import DRAFTED

__all__ = ["EFFORTS", "MANY", "NORMAL", "QUICK", "THOROUGH", "Effort", "effort_of"]


#: samples that tell a loss of a percent well, and the part of it that is always little
MANY, _LEAST = 250, 0.2


@dataclass(frozen=True)
class Effort:
    """What is built and judged on held-out samples before a plan is taken.

    Attributes:
        name: as in the options.
        builds: whether plans are built to compare them, or predictions decide.
        steps: times that the share of pruning is moved to where the judge finds less loss.
        rounds: times that sensitivities are measured and the plan is made again, at the most.
        bounded: whether fewer plans are built where each takes long or much memory.
        repair: how layers are solved again where the caller does not say, a key of
            :data:`~onnx_lowrank.planning.refit_modes.REPAIRS`; None as drafts say.
        enough: loss of a draft below which nothing better is looked for: no other plan, and no
            repair in full; see :meth:`enough_on`.
    """

    name: str
    builds: bool
    steps: int
    rounds: int
    bounded: bool
    repair: str | None = None
    enough: float = 0.0

    def enough_on(self, samples: int) -> float:
        """:attr:`enough` where the loss is known from so many samples: less, the fewer they are.

        On 50 samples one answer more or less is a loss of 1 %.
        """
        return self.enough * min(max(samples / MANY, _LEAST), 1.0)


#: predictions alone
QUICK = Effort("quick", builds=False, steps=0, rounds=0, bounded=True, repair=DRAFTED)

#: the usual one. Below 1 % another share of pruning gains little (see
#: :mod:`onnx_lowrank.engine.alternatives`); and solving on all samples, which takes twice as long,
#: and behind ReLUs twice as long again, took off no more than 0.03 points. Measured sensitivities,
#: which take up to a quarter of the time, made as many worse plans as better ones: ten of them lost
#: 0 to 20 % less than those without in four cases, and 7 to 64 % more in six
NORMAL = Effort("normal", builds=True, steps=1, rounds=0, bounded=True, enough=0.01)

#: whatever it costs
THOROUGH = Effort("thorough", builds=True, steps=6, rounds=3, bounded=False)

#: by name
EFFORTS: Mapping[str, Effort] = MappingProxyType({e.name: e for e in (QUICK, NORMAL, THOROUGH)})


def effort_of(name: str) -> Effort:
    """The effort of that name.

    Raises:
        OptionError: there is none.
    """
    if name not in EFFORTS:
        raise OptionError(f"there is no effort {name!r}; give one of: {', '.join(EFFORTS)}")
    return EFFORTS[name]
