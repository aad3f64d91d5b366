"""The last that is done to a result: our mark in its metadata, and the checker's word on it."""

from __future__ import annotations

from dataclasses import replace

from onnx import checker

from onnx_lowrank._version import __version__
from onnx_lowrank.errors import ValidationError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.planning.plan import Plan

__all__ = ["check", "sign"]


def sign(model: Model, plan: Plan) -> Model:
    """``model`` with the digest of its plan and our version in the place of older ones."""
    proto = model.proto
    kept = [p for p in proto.metadata_props if not p.key.startswith("onnx_lowrank.")]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    for key, value in (("onnx_lowrank.plan", plan.digest), ("onnx_lowrank.version", __version__)):
        proto.metadata_props.add(key=key, value=value)
    return replace(model, path=None)


def check(source: Model, result: Model) -> None:
    """The checker must accept what we wrote wherever it accepted what we read.

    Raises:
        ValidationError: it does not.
    """
    try:
        checker.check_model(source.skeleton)
    except (checker.ValidationError, ValueError):
        return
    try:
        checker.check_model(result.skeleton)
    except checker.ValidationError as error:
        raise ValidationError(
            f"the result does not pass onnx.checker, please report it: {error}"
        ) from error
