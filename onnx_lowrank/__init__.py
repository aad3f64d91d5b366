"""Compress an exported ONNX model by low-rank factorization, without labels or retraining."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_lowrank._version import __version__
    from onnx_lowrank.engine.api import Result, apply, compress, plan, sweep
    from onnx_lowrank.engine.curves import Curves, curves
    from onnx_lowrank.engine.inspection import Inspection, inspect
    from onnx_lowrank.engine.optimize import optimize
    from onnx_lowrank.engine.select import Selection, select
    from onnx_lowrank.engine.validate import validate
    from onnx_lowrank.errors import (
        BatchError,
        BudgetError,
        DataError,
        GuardError,
        LowRankError,
        ModelError,
        OptionError,
        PassError,
        PlanError,
        ValidationError,
    )
    from onnx_lowrank.fleet.batch import Batch, batch
    from onnx_lowrank.judge.checks import Validation
    from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan
    from onnx_lowrank.report.report import Report
    from onnx_lowrank.report.sweep import Sweep

__all__ = [
    "Batch",
    "BatchError",
    "BudgetError",
    "Curves",
    "DataError",
    "Decision",
    "GroupDecision",
    "GuardError",
    "Inspection",
    "LowRankError",
    "ModelError",
    "OptionError",
    "PassError",
    "Plan",
    "PlanError",
    "Report",
    "Result",
    "Selection",
    "Sweep",
    "Validation",
    "ValidationError",
    "__version__",
    "apply",
    "batch",
    "compress",
    "curves",
    "inspect",
    "optimize",
    "plan",
    "select",
    "sweep",
    "validate",
]

#: where each public name is: loaded when asked for, since ONNX Runtime and SciPy take a second
_HOMES = {
    "_version": ("__version__",),
    "engine.api": ("Result", "apply", "compress", "plan", "sweep"),
    "engine.curves": ("Curves", "curves"),
    "engine.inspection": ("Inspection", "inspect"),
    "engine.optimize": ("optimize",),
    "engine.select": ("Selection", "select"),
    "engine.validate": ("validate",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "fleet.batch": ("Batch", "batch"),
    "judge.checks": ("Validation",),
    "planning.plan": ("Decision", "GroupDecision", "Plan"),
    "report.report": ("Report",),
    "report.sweep": ("Sweep",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"onnx_lowrank.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
