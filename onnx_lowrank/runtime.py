"""Run models: the only module that imports ONNX Runtime."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.model import LARGEST_PROTO, Model

__all__ = ["Feed", "Runtime", "Session", "interleaved_latency"]

Feed = Mapping[str, npt.NDArray[Any]]

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(_state).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
#: the Python part of ONNX Runtime checks feeds before the rest of it does; what the rest throws
#: beside its own errors arrives as RuntimeError, MemoryError, or ValueError (messages of no text)
_RUN_ERRORS: tuple[type[Exception], ...] = (
    *_ORT_ERRORS,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True)
class Runtime:
    """How models are run.

    Attributes:
        provider: ONNX Runtime execution provider.
        threads: intra-op threads; 0 leaves the choice to ONNX Runtime.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 0

    def __post_init__(self) -> None:
        available = ort.get_available_providers()
        if self.provider not in available:
            raise OptionError(
                f"provider {self.provider!r} is not in this ONNX Runtime; "
                f"choose from {', '.join(available)}"
            )
        if self.threads < 0:
            raise OptionError(f"threads must be 0 or more, not {self.threads}")

    def session(self, model: Model, *, optimise: bool = True, lean: bool = False) -> Session:
        """Open ``model``.

        Args:
            model: what to run.
            optimise: leave ONNX Runtime's graph optimisations on.
            lean: no memory arena, for runs whose peak memory matters more than their speed.

        Raises:
            ModelError: ONNX Runtime refuses the model.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if lean:
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        if model.folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(model.folder)
            )
        if model.proto.ByteSize() > LARGEST_PROTO:
            raise ModelError("a model above 2 GB must be loaded from a file with external data")
        try:
            inner = ort.InferenceSession(
                model.proto.SerializeToString(), options, providers=[self.provider]
            )
        except _RUN_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error
        return Session(inner)


class Session:
    """An opened model."""

    def __init__(self, inner: ort.InferenceSession) -> None:
        self._inner = inner
        self.outputs: list[str] = [o.name for o in inner.get_outputs()]
        self._inputs = {i.name for i in inner.get_inputs()}

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name; entries of ``feed`` that the model does not read are ignored.

        Raises:
            ModelError: ONNX Runtime fails on this input.
        """
        names = list(self.outputs if outputs is None else outputs)
        wanted = {k: v for k, v in feed.items() if k in self._inputs}
        try:
            values = self._inner.run(names, wanted)
        except _RUN_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error
        return dict(zip(names, values, strict=True))


@dataclass(frozen=True)
class Latency:
    """Times of one model, in seconds for one run."""

    best: float
    median: float
    spread: float  # interquartile range over the median


def interleaved_latency(
    sessions: Sequence[Session], feed: Feed, *, seconds: float = 2.0, least: int = 5
) -> list[Latency]:
    """Time several models in alternation, so that a noisy machine disturbs all alike.

    They take turns of a few runs rather than of one: the idle threads of a session spin for a
    while, and would take the cores from the next one.

    Args:
        sessions: the models.
        feed: one input for all of them.
        seconds: time to spend in all.
        least: turns at the least.
    """
    times: list[list[float]] = [[] for _ in sessions]
    end = time.perf_counter() + seconds
    turns = 0
    while turns < least or time.perf_counter() < end:
        for session, record in zip(sessions, times, strict=True):
            record += _turn(session, feed)
        turns += 1
    return [_latency(record) for record in times]


def _turn(session: Session, feed: Feed, seconds: float = 0.02, least: int = 2) -> list[float]:
    """Times of runs for a while, without those of its first half."""
    record: list[float] = []
    start = time.perf_counter()
    while len(record) < 2 * least or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        session.run(feed)
        record.append(time.perf_counter() - before)
    return record[len(record) // 2 :]


def _latency(record: list[float]) -> Latency:
    low, median, high = np.percentile(record, [25, 50, 75])
    return Latency(min(record), float(median), float((high - low) / median))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
