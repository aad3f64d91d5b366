"""Refit modes: the values of ``--repair``, and what each does."""

from __future__ import annotations

from onnx_lowrank.errors import OptionError

__all__ = ["DEFAULT_REPAIR", "DRAFTED", "REPAIRS", "SOLVES_LAYERS", "check_repair"]

#: what each mode does, by name; :mod:`onnx_lowrank.refit.refit` has the method
REPAIRS = {
    "none": "leave the chains as the plan made them",
    "last": "solve the last stage of each again",
    "light": "solve and factorize each again, on fewer samples and rows",
    "chain": "solve and factorize each again",
    "relu": "chain, and again for what a ReLU lets through",
}

DEFAULT_REPAIR = "relu"

#: the mode of plans that are compared before one is taken
DRAFTED = "light"

#: modes that solve whole layers, and so know what each would be if it were not replaced
SOLVES_LAYERS = ("light", "chain", "relu")


def check_repair(name: str) -> str:
    """Return ``name`` if it is a key of :data:`REPAIRS`.

    Raises:
        OptionError: ``name`` is not a refit mode.
    """
    if name not in REPAIRS:
        raise OptionError(f"repair is {name!r}; it should be one of {', '.join(REPAIRS)}")
    return name
