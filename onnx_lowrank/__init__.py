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
    ValidationError,
)
from onnx_lowrank.inspection import Inspection, inspect
from onnx_lowrank.pipeline import Result, compress
from onnx_lowrank.planner import Decision, Plan
from onnx_lowrank.report import Report
from onnx_lowrank.validate import Validation, validate

__all__ = [
    "BudgetError",
    "Curves",
    "DataError",
    "Decision",
    "GuardError",
    "ImageOptions",
    "Inspection",
    "LowRankError",
    "ModelError",
    "OptionError",
    "Plan",
    "Report",
    "Result",
    "Validation",
    "ValidationError",
    "__version__",
    "compress",
    "curves",
    "inspect",
    "validate",
]
