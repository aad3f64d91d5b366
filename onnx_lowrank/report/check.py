"""What a report stands on, and the report of two models that were given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnx_lowrank._version import __version__
from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.judge.checks import Validation
from onnx_lowrank.latency.pairs import LatencyPair

__all__ = ["SCHEMA", "Basis", "Check", "as_text", "costs", "latencies", "validated"]

#: number of the form of reports, as in ``report.schema.json``
SCHEMA = 2


@dataclass(frozen=True)
class Basis:
    """What a report stands on.

    Attributes:
        model: SHA-256 of the original.
        result: SHA-256 of the new model.
        data: SHA-256 of the samples; empty without any.
        surroundings: machine, system and versions by name.
    """

    model: str
    result: str
    data: str
    surroundings: Mapping[str, str]

    def to_dict(self, command: str, plan: str = "") -> dict[str, Any]:
        """Plain data for JSON.

        Args:
            command: as it was given; empty where there was none.
            plan: SHA-256 of the plan; empty without one.
        """
        return {"command": command, "plan": plan, **asdict(self)}


@dataclass(frozen=True)
class Check:
    """Two models that were compared, and whether the second may take the place of the first.

    Attributes:
        before: cost of the original.
        after: cost of the new model.
        validation: the comparison; None where it could not be made.
        latency: of both models in alternation, at some batch sizes.
        basis: what it stands on.
        allowed: largest drop allowed, as a fraction; None for no bound.
        failed: why the new model may not take its place, in a line; empty where it may.
    """

    before: Cost
    after: Cost
    validation: Validation | None
    latency: tuple[LatencyPair, ...]
    basis: Basis
    allowed: float | None = None
    failed: str = ""

    def to_dict(self, command: str = "") -> dict[str, Any]:
        """Plain data, in the form of all reports."""
        checked, accuracy = validated(self.validation)
        notes = () if self.validation is None else self.validation.notes
        return {
            "schema": SCHEMA,
            "kind": "validate",
            "version": __version__,
            "target": "",
            "seed": None,
            "plan": "",
            "model": costs(self.before, self.after, self.latency),
            "layers": [],
            "groups": [],
            "refit": [],
            "validation": checked,
            "costliest": [],
            "accuracy": accuracy,
            "latency": latencies(self.latency),
            "stages": [],
            "simplified": None,
            "notes": list(notes),
            "seconds": {},
            "gate": {"allowed": self.allowed, "failed": self.failed},
            "basis": self.basis.to_dict(command),
        }


def as_text(data: Mapping[str, Any]) -> str:
    """A report as JSON; no NaN, no Infinity."""
    return json.dumps(data, indent=1, allow_nan=False)


def costs(before: Cost, after: Cost, latency: tuple[LatencyPair, ...]) -> dict[str, Any]:
    """What both models cost, as plain data."""
    first = latency[0] if latency else None
    return {
        "before": {**before.to_dict(), "latency_ms": first.reference_ms if first else None},
        "after": {**after.to_dict(), "latency_ms": first.new_ms if first else None},
    }


def latencies(pairs: tuple[LatencyPair, ...]) -> list[dict[str, Any]]:
    """Times of both models, as plain data."""
    return [p.to_dict() for p in pairs]


def validated(validation: Validation | None) -> tuple[dict[str, Any] | None, Any]:
    """A comparison as plain data, and the accuracy apart; notes are among those of the report."""
    if validation is None:
        return None, None
    data = validation.to_dict()
    accuracy = data.pop("accuracy")
    del data["notes"]
    return data, accuracy
