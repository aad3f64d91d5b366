"""The names of how weights are mended once a plan is made, and what each does."""

from __future__ import annotations

from onnx_lowrank.errors import OptionError

__all__ = ["DEFAULT_REPAIR", "REPAIRS", "SOLVES_LAYERS", "check_repair"]

#: by name; what they do is said in :mod:`onnx_lowrank.refit.refit`
REPAIRS = {
    "none": "leave the chains as the plan made them",
    "last": "solve the last stage of each again",
    "chain": "solve and factorize each again",
    "relu": "chain, and again for what a ReLU lets through",
}

DEFAULT_REPAIR = "relu"

#: those that solve whole layers, and so know what each would be if it were not taken apart
SOLVES_LAYERS = ("chain", "relu")


def check_repair(name: str) -> str:
    """``name``, if it is one of :data:`REPAIRS`.

    Raises:
        OptionError: it is not.
    """
    if name not in REPAIRS:
        raise OptionError(f"repair {name!r}; it should be one of {', '.join(REPAIRS)}")
    return name
