"""The plan: a decision for every layer and group of channels, to be read, edited and applied."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from onnx_lowrank.chain import Rank
from onnx_lowrank.errors import PlanError

__all__ = ["Decision", "GroupDecision", "Plan"]

SCHEMA = 2

#: bytes of a plan that is worth reading: thousands of layers take a few megabytes
_LARGEST = 64 << 20

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    A hand may change ``decision``, ``method``, ``variant`` and ``rank``; the rest is what was
    predicted.

    Attributes:
        layer: its name.
        op: its operator.
        decision: ``keep | factorize | skip``; a skipped layer is not looked at.
        method: spec of the pass.
        variant: which form of it.
        rank: channels a group between the stages, one number or one for each place.
        error: relative response error.
        macs_before: of the layer in the original.
        macs_after: of what takes its place.
        parameters_before: likewise.
        parameters_after: likewise.
        reason: why.
    """

    layer: str
    op: str
    decision: str
    method: str
    variant: str
    rank: Rank
    error: float
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    reason: str

    @property
    def parameters(self) -> int:
        """Of what takes its place."""
        return self.parameters_after


@dataclass(frozen=True)
class GroupDecision:
    """What becomes of a group of channels, and why.

    Attributes:
        name: of the group; of a layer and ``(input)``, where it reads through a Gather.
        decision: ``cut | gather | keep | frozen``.
        size: channels before.
        kept: those that stay, rising; empty where all do.
        loss: predicted, summed over the readers, relative to what their responses end up in.
        reason: why.
    """

    name: str
    decision: str
    size: int
    kept: tuple[int, ...]
    loss: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """All decisions, and under what they were made.

    Attributes:
        model: SHA-256 of the model file.
        data: SHA-256 of the calibration samples; empty without data.
        target: as asked, ``macs=0.5``.
        seed: of all random draws.
        samples: calibration samples that were asked for; None for all.
        passes: specs of the passes, rewrites first.
        decisions: one for each layer with weights, in topological order.
        groups: one for each group of channels, where channels were pruned.
    """

    model: str
    data: str
    target: str
    seed: int
    samples: int | None
    passes: tuple[str, ...]
    decisions: tuple[Decision, ...]
    groups: tuple[GroupDecision, ...] = ()
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The plan as text; equal plans give equal text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that :meth:`to_json` wrote, by whatever hand it was edited since.

        Raises:
            PlanError: it is none; the message says where.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"the plan is no JSON: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise PlanError(f"the plan has schema {found!r}; this version reads {SCHEMA}")
        decisions = [
            _read(Decision, d, f"decisions[{i}]")
            for i, d in enumerate(_list(data.get("decisions"), "decisions"))
        ]
        groups = [
            _read(GroupDecision, d, f"groups[{i}]")
            for i, d in enumerate(_list(data.get("groups"), "groups"))
        ]
        return _read(cls, {**data, "decisions": tuple(decisions), "groups": tuple(groups)}, "plan")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file.

        Raises:
            PlanError: it cannot be read, or is none.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_LARGEST + 1)
            if len(raw) > _LARGEST:
                raise PlanError(f"{path} has more than {_LARGEST >> 20} MB; that is no plan")
            return cls.from_json(raw.decode())
        except (OSError, ValueError) as error:
            raise PlanError(f"the plan {path} cannot be read: {error}") from error


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PlanError(f"plan: {where} is no list")
    return value


def _read(cls: type[_T], data: Any, where: str) -> _T:
    """A dataclass from JSON, every field present and of its type."""
    if not isinstance(data, Mapping):
        raise PlanError(f"plan: {where} is no object")
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    if extra := set(data) - set(known):
        raise PlanError(f"plan: {where} has no field {min(extra)!r}")
    if missing := set(known) - set(data):
        raise PlanError(f"plan: {where} lacks {min(missing)!r}")
    return cls(**{k: _value(data[k], kind, f"{where}.{k}") for k, kind in known.items()})


def _value(value: Any, kind: str, where: str) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind == "str":
        right = isinstance(value, str)
    elif kind == "int":
        right = whole
    elif kind == "float":
        right = whole or isinstance(value, float)
    elif kind == "int | None":
        right = whole or value is None
    elif kind == "Rank" and whole:
        right = value >= 0
    elif kind in ("Rank", "tuple[int, ...]"):
        right = isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)
        value = tuple(value) if right else value
    elif kind == "tuple[str, ...]":
        right = isinstance(value, list) and all(isinstance(v, str) for v in value)
        value = tuple(value) if right else value
    else:  # read before
        right = isinstance(value, tuple)
    if not right:
        raise PlanError(f"plan: {where} is {value!r}; it should be of type {kind}")
    return value
