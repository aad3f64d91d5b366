"""Compress an exported ONNX model by low-rank factorization, without labels or retraining."""

from __future__ import annotations

from onnx_lowrank._version import __version__
from onnx_lowrank.calibration import ImageOptions
from onnx_lowrank.curves import Curves, curves
from onnx_lowrank.errors import (
    BudgetError,
    DataError,
    GuardError,
    LowRankError,
    ModelError,
    OptionError,
    PlanError,
    ValidationError,
)
from onnx_lowrank.inspection import Inspection, inspect
from onnx_lowrank.pipeline import Result, apply, compress, plan, sweep
from onnx_lowrank.plan import Decision, GroupDecision, Plan
from onnx_lowrank.report import Report
from onnx_lowrank.sweep import Sweep
from onnx_lowrank.validate import Validation, validate

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
