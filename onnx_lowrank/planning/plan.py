"""The plan: a decision for every layer and group of channels, to be read, edited and applied."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from onnx_lowrank.chains.chain import Rank
from onnx_lowrank.errors import OptionError, PlanError
from onnx_lowrank.planning.refit_modes import DEFAULT_REPAIR, check_repair
from onnx_lowrank.planning.targets import Target

__all__ = ["Decision", "GroupDecision", "Plan"]

SCHEMA = 3

#: bytes of a plan that is worth reading: thousands of layers take a few megabytes
_LARGEST = 64 << 20

#: the largest number that may stand in a plan
_MOST = 2**63 - 1

DECISIONS = ("keep", "factorize", "share", "skip")
GROUP_DECISIONS = ("cut", "gather", "keep", "frozen")

_KINDS = {
    "str": "a text",
    "int": "a whole number, 0 or more",
    "float": "a finite number",
    "int | None": "a whole number, 1 or more, or null",
    "Rank": "a whole number, or a list of these",
    "tuple[int, ...]": "a list of whole numbers, 0 or more",
    "tuple[str, ...]": "a list of texts",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """What becomes of one layer, and why.

    A hand may change ``decision``, ``method``, ``variant`` and ``rank``; the rest is what was
    predicted.

    Attributes:
        layer: its name.
        op: its operator.
        decision: ``keep | factorize | share | skip``; a skipped layer is not looked at. Layers
            of one weight that ``share`` get one chain, by the same method and rank.
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

    @property
    def replaces(self) -> bool:
        """Whether a chain takes the place of the layer."""
        return self.decision in ("factorize", "share")


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

    @property
    def shrinks(self) -> bool:
        """Whether channels go; ``kept`` may stand in a group that is kept by hand, too."""
        return self.decision in ("cut", "gather")


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
        repair: how weights are mended, of :data:`onnx_lowrank.planning.refit_modes.REPAIRS`.
    """

    model: str
    data: str
    target: str
    seed: int
    samples: int | None
    passes: tuple[str, ...]
    decisions: tuple[Decision, ...]
    groups: tuple[GroupDecision, ...] = ()
    repair: str = DEFAULT_REPAIR
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
            raise PlanError(f"the plan has schema {_shown(found)}; this version reads {SCHEMA}")
        for name, kind in (("decisions", Decision), ("groups", GroupDecision)):
            rows = data.get(name)
            if isinstance(rows, list):
                data[name] = tuple(_read(kind, row, f"{name}[{i}]") for i, row in enumerate(rows))
        plan = _read(cls, data, "plan")
        _check_options(plan)
        _check_decisions(plan.decisions)
        _check_groups(plan.groups)
        return plan

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file.

        Raises:
            PlanError: it cannot be read, or is none.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_LARGEST + 1)
            text = raw.decode()
        except (OSError, ValueError) as error:
            raise PlanError(f"the plan {path} cannot be read: {error}") from error
        if len(raw) > _LARGEST:
            raise PlanError(f"{path} has more than {_LARGEST >> 20} MB; that is no plan")
        return cls.from_json(text)


def _check_options(plan: Plan) -> None:
    target = plan.target
    rule = target.removeprefix("ranks ")
    try:
        check_repair(plan.repair)
        if rule not in (target, "planner"):
            Target.parse(None, rule)
        else:
            Target.parse(target.split() or target)
    except OptionError as error:
        raise PlanError(f"plan: {error}") from error


def _check_decisions(decisions: tuple[Decision, ...]) -> None:
    seen = set()
    for i, d in enumerate(decisions):
        where = f"plan: decisions[{i}] ({_shown(d.layer)})"
        if d.decision not in DECISIONS:
            raise PlanError(f"{where}: decision {_shown(d.decision)}; {_one_of(DECISIONS)}")
        if d.decision == "skip":  # nodes of subgraphs may have the same name
            continue
        if d.layer in seen:
            raise PlanError(f"{where} comes twice")
        seen.add(d.layer)
        ranks = (d.rank,) if isinstance(d.rank, int) else d.rank
        if d.replaces and (not ranks or min(ranks) < 1):
            raise PlanError(f"{where}: rank {_shown(d.rank)}; ranks are 1 or more")


def _check_groups(groups: tuple[GroupDecision, ...]) -> None:
    seen = set()
    for i, g in enumerate(groups):
        where = f"plan: groups[{i}] ({_shown(g.name)})"
        if g.decision not in GROUP_DECISIONS:
            raise PlanError(f"{where}: decision {_shown(g.decision)}; {_one_of(GROUP_DECISIONS)}")
        if g.name in seen:
            raise PlanError(f"{where} comes twice")
        seen.add(g.name)
        rising = all(a < b for a, b in pairwise(g.kept))
        if not rising or (g.kept and g.kept[-1] >= g.size):
            raise PlanError(f"{where}: kept are no rising numbers below {g.size}")
        if g.shrinks and not g.kept:
            raise PlanError(f"{where}: kept is empty; one channel must stay")


def _read(cls: type[_T], data: Any, where: str) -> _T:
    """A dataclass from JSON, every field present and of its type."""
    if not isinstance(data, Mapping):
        raise PlanError(f"plan: {where} is no object")
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    if extra := set(data) - set(known):
        raise PlanError(f"plan: {where} has no field {_shown(min(extra))}")
    if missing := set(known) - set(data):
        raise PlanError(f"plan: {where} lacks {min(missing)!r}")
    return cls(**{k: _value(data[k], kind, f"{where}.{k}") for k, kind in known.items()})


def _value(value: Any, kind: str, where: str) -> Any:
    whole = _whole(value)
    if kind == "str":
        right = isinstance(value, str) and _encodes(value)
    elif kind == "int":
        right = whole
    elif kind == "float":
        right = whole or (isinstance(value, float) and math.isfinite(value))
        value = float(value) if right else value
    elif kind == "int | None":
        right = value is None or (whole and value > 0)
    elif kind == "Rank" and whole:
        right = True
    elif kind in ("Rank", "tuple[int, ...]"):
        right = isinstance(value, list) and all(map(_whole, value))
        value = tuple(value) if right else value
    elif kind == "tuple[str, ...]":
        right = isinstance(value, list) and all(isinstance(v, str) and _encodes(v) for v in value)
        value = tuple(value) if right else value
    else:  # rows, read before
        right = isinstance(value, tuple)
    if not right:
        wanted = _KINDS.get(kind, "a list")
        raise PlanError(f"plan: {where} is {_shown(value)}; it should be {wanted}")
    return value


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MOST


def _encodes(text: str) -> bool:
    """JSON has escapes for halves of characters, which are no text."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _shown(value: Any) -> str:
    """A value as it stands in the file, if it is short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "too deep"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_of(names: tuple[str, ...]) -> str:
    return f"it should be {', '.join(names[:-1])} or {names[-1]}"
