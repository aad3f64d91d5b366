"""What can go wrong, and the exit code of the command line for each.

    LowRankError              1   base of all; never raised itself
    +-- OptionError           2   an option or target that makes no sense
    +-- PassError             2   a pass that failed, and on which layer
    +-- PlanError             2   a plan that cannot be read, or of another model or data
    +-- ModelError            3   a file that is no usable ONNX model
    +-- DataError             4   calibration or validation data that does not fit the model
    +-- BudgetError           5   no plan meets the budget
    |   +-- NothingAppliesError 5 because no pass can do anything with any layer
    +-- GuardError            5   the result would be slower or bigger than the original
    +-- ValidationError       6   the result does not give the answers of the original
    +-- BatchError            7   some models of a batch failed, or a cluster could not go on

A layer that cannot be compressed is no error: it is a :class:`onnx_lowrank.passkit.base.Skip`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BatchError",
    "BudgetError",
    "DataError",
    "GuardError",
    "LowRankError",
    "ModelError",
    "NothingAppliesError",
    "OptionError",
    "PassError",
    "PlanError",
    "ValidationError",
]


class LowRankError(Exception):
    """Base of every deliberate error; its message names the thing and the remedy."""

    exit_code: ClassVar[int] = 1


class OptionError(LowRankError, ValueError):
    """An option, pass name or target that makes no sense."""

    exit_code = 2


class PassError(LowRankError):
    """A pass that raised an error or gave back what cannot be used, named with its layer."""

    exit_code = 2


class PlanError(LowRankError):
    """A plan that cannot be read, or that belongs to another model or other data."""

    exit_code = 2


class ModelError(LowRankError):
    """A file that is no usable ONNX model, or cannot be written."""

    exit_code = 3


class DataError(LowRankError):
    """Calibration or validation data that does not fit the model."""

    exit_code = 4


class BudgetError(LowRankError):
    """No plan meets the budget."""

    exit_code = 5


class NothingAppliesError(BudgetError):
    """No pass can do anything with any layer, so no ratio would be met."""


class GuardError(LowRankError):
    """The result would be slower or bigger than the original."""

    exit_code = 5


class ValidationError(LowRankError):
    """The result does not give the answers of the original."""

    exit_code = 6


class BatchError(LowRankError):
    """A batch of which some models failed (the others are written), or a cluster that is lost."""

    exit_code = 7
