"""Compress an exported ONNX model by low-rank factorization, without labels or retraining."""

from __future__ import annotations

from onnx_lowrank._version import __version__
from onnx_lowrank.engine.api import Result, apply, compress, plan, sweep
from onnx_lowrank.engine.curves import Curves, curves
from onnx_lowrank.engine.inspection import Inspection, inspect
from onnx_lowrank.engine.sweep import Sweep
from onnx_lowrank.errors import (
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
from onnx_lowrank.judge.validation import Validation, validate
from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan
from onnx_lowrank.report.report import Report
from onnx_lowrank.samples.dataset import ImageOptions

__all__ = [
    "BudgetError",
    "Curves",
    "DataError",
    "Decision",
    "GroupDecision",
    "GuardError",
    "ImageOptions",
    "Inspection",
    "LowRankError",
    "ModelError",
    "OptionError",
    "PassError",
    "Plan",
    "PlanError",
    "Report",
    "Result",
    "Sweep",
    "Validation",
    "ValidationError",
    "__version__",
    "apply",
    "compress",
    "curves",
    "inspect",
    "plan",
    "sweep",
    "validate",
]
