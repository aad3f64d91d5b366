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
from onnx_lowrank.samples.selection import RANDOM, check_selection

__all__ = ["Decision", "GroupDecision", "Plan"]

SCHEMA = 4

#: largest plan file that is read, in bytes; thousands of layers take a few megabytes
_LARGEST_FILE = 64 << 20

#: largest whole number that may stand in a plan
_LARGEST_NUMBER = 2**63 - 1

DECISIONS = ("keep", "factorize", "share", "skip")
GROUP_DECISIONS = ("cut", "gather", "keep", "frozen")

_KINDS = {
    "str": "a string",
    "int": "a whole number, 0 or more",
    "float": "a finite number",
    "int | None": "a whole number, 1 or more, or null",
    "Rank": "a whole number, or a list of these",
    "tuple[int, ...]": "a list of whole numbers, 0 or more",
    "tuple[str, ...]": "a list of strings",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """The decision on one layer, with its reason.

    ``decision``, ``method``, ``variant`` and ``rank`` may be edited in the file; the other fields
    are predictions.

    Attributes:
        layer: name of the layer.
        op: operator of the layer, such as ``Conv``.
        decision: ``keep | factorize | share | skip``. A skipped layer is one that passes cannot
            replace. Layers that use one weight and ``share`` get one chain, by the same method
            and rank.
        method: spec of the pass; empty for a layer that is not replaced.
        variant: name of the form of the method.
        rank: channels of a group between the stages, one number or one for each place.
        error: relative response error, between 0 and 1.
        macs_before: MACs of the layer in the original.
        macs_after: MACs of the layer or chain in the result.
        parameters_before: parameters of the layer in the original.
        parameters_after: parameters of the layer or chain in the result.
        reason: sentence for the report that says why.
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
        """Parameters of the layer or chain in the result."""
        return self.parameters_after

    @property
    def replaces(self) -> bool:
        """Whether a chain takes the place of the layer."""
        return self.decision in ("factorize", "share")


@dataclass(frozen=True)
class GroupDecision:
    """The decision on one group of channels, with its reason.

    Attributes:
        name: name of the group; the layer's name and ``(input)`` where one layer reads its
            channels through a Gather.
        decision: ``cut | gather | keep | frozen``.
        size: number of channels in the original.
        kept: numbers of the channels that stay, rising; empty where all do.
        loss: predicted loss, summed over the readers, each relative to the energy of the sum that
            its response enters.
        reason: sentence for the report that says why.
    """

    name: str
    decision: str
    size: int
    kept: tuple[int, ...]
    loss: float
    reason: str

    @property
    def shrinks(self) -> bool:
        """Whether channels go. ``kept`` alone does not say so: a plan edited to ``keep`` has it."""
        return self.decision in ("cut", "gather")


@dataclass(frozen=True)
class Plan:
    """All decisions on a model, with the options that they were made under.

    Attributes:
        model: SHA-256 of the model file, hexadecimal.
        data: SHA-256 of the calibration samples, hexadecimal; empty without data.
        target: the target as it was given, such as ``macs=0.5``.
        seed: random seed.
        samples: number of calibration samples asked for; None for all.
        passes: specs of the passes, rewrites first.
        decisions: a decision for each layer with weights, in topological order.
        groups: a decision for each group of channels; empty where no pass prunes.
        repair: how far weights are refitted, a key of
            :data:`onnx_lowrank.planning.refit_modes.REPAIRS`.
        select: how the calibration samples are chosen, one of
            :data:`onnx_lowrank.samples.selection.SELECTIONS`.
        schema: version of the file format.
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
    select: str = RANDOM
    schema: int = SCHEMA

    def to_json(self) -> str:
        """The plan as JSON text; equal plans give equal text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan from JSON text, as :meth:`to_json` wrote it or as a person edited it.

        Raises:
            PlanError: the text is not a valid plan; the message names the field.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(
                f"the plan is not valid JSON: {error}; mend it there, or write the plan again"
            ) from error
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else None
            raise PlanError(
                f"the plan has schema {_shown(found)}, and this version reads schema {SCHEMA}; "
                "write the plan again"
            )
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
        """Read a plan from a file.

        Raises:
            PlanError: the file cannot be read, or does not hold a valid plan.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(_LARGEST_FILE + 1)
            text = raw.decode()
        except (OSError, ValueError) as error:
            raise PlanError(f"the plan {path} cannot be read: {error}") from error
        if len(raw) > _LARGEST_FILE:
            raise PlanError(
                f"{path} has more than {_LARGEST_FILE >> 20} MiB, which is too large for a plan; "
                "give the JSON file that `onnx-lowrank plan` wrote"
            )
        return cls.from_json(text)


def _check_options(plan: Plan) -> None:
    try:
        check_repair(plan.repair)
        check_selection(plan.select)
        if plan.select != RANDOM and plan.samples is None:
            raise OptionError(f"select is {plan.select!r}, and samples is null; give a number")
        Target.from_text(plan.target)
    except OptionError as error:
        raise PlanError(f"plan: {error}") from error


def _check_decisions(decisions: tuple[Decision, ...]) -> None:
    seen = set()
    for i, d in enumerate(decisions):
        where = f"plan: decisions[{i}] ({_shown(d.layer)})"
        if d.decision not in DECISIONS:
            raise PlanError(f"{where}: decision is {_shown(d.decision)}; {_one_of(DECISIONS)}")
        if d.decision == "skip":  # nodes of subgraphs may have the same name
            continue
        if d.layer in seen:
            raise PlanError(f"{where}: this layer has a decision already; remove one of the two")
        seen.add(d.layer)
        ranks = (d.rank,) if isinstance(d.rank, int) else d.rank
        if d.replaces and (not ranks or min(ranks) < 1):
            raise PlanError(f"{where}: rank is {_shown(d.rank)}; it should be 1 or more")


def _check_groups(groups: tuple[GroupDecision, ...]) -> None:
    seen = set()
    for i, g in enumerate(groups):
        where = f"plan: groups[{i}] ({_shown(g.name)})"
        if g.decision not in GROUP_DECISIONS:
            raise PlanError(
                f"{where}: decision is {_shown(g.decision)}; {_one_of(GROUP_DECISIONS)}"
            )
        if g.name in seen:
            raise PlanError(f"{where}: this group has a decision already; remove one of the two")
        seen.add(g.name)
        rising = all(a < b for a, b in pairwise(g.kept))
        if not rising or (g.kept and g.kept[-1] >= g.size):
            raise PlanError(
                f"{where}: kept should be channel numbers below {g.size}, each larger than the "
                "one before"
            )
        if g.shrinks and not g.kept:
            raise PlanError(f"{where}: kept is empty; it should list at least one channel")


def _read(cls: type[_T], data: Any, where: str) -> _T:
    """A dataclass from JSON, every field present and of its type."""
    if not isinstance(data, Mapping):
        raise PlanError(f"plan: {where} should be a JSON object")
    known = {f.name: str(f.type) for f in fields(cls)}  # type: ignore[arg-type]
    if extra := set(data) - set(known):
        raise PlanError(f"plan: {where} has the unknown field {_shown(min(extra))}; remove it")
    if missing := set(known) - set(data):
        raise PlanError(f"plan: {where} lacks the field {min(missing)!r}; add it")
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
    return type(value) is int and 0 <= value <= _LARGEST_NUMBER


def _encodes(text: str) -> bool:
    """Whether ``text`` can be encoded; JSON has escapes for lone surrogates, which cannot."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _shown(value: Any) -> str:
    """The value as JSON text, shortened to 60 characters."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_of(names: tuple[str, ...]) -> str:
    return f"it should be {', '.join(names[:-1])} or {names[-1]}"
