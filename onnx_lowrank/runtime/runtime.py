"""Sessions of ONNX Runtime; no other module imports it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import IR_VERSION, TensorProto, defs, helper
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from onnx_lowrank.errors import DataError, ModelError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.element_types import UNNAMED, copied
from onnx_lowrank.runtime.segments import pieces
from onnx_lowrank.runtime.version_stamps import restamped

__all__ = ["Feed", "Runtime", "Session"]

Feed = Mapping[str, npt.NDArray[Any]]

#: seconds that a run takes whose time no idle thread or cold cache makes much longer
_LONG = 0.3

#: largest weights of one piece of a model that is run in pieces, in bytes
PIECE = 256 << 20

_ORT_ERRORS: tuple[type[Exception], ...] = tuple(
    error
    for error in vars(_state).values()
    if isinstance(error, type) and issubclass(error, Exception)
)
#: errors of a run: ValueError and TypeError come from checks of the feeds in Python; exceptions of
#: C++ arrive as RuntimeError, MemoryError, or ValueError (if the message is not valid text)
_RUN_ERRORS: tuple[type[Exception], ...] = (
    *_ORT_ERRORS,
    ValueError,
    TypeError,
    RuntimeError,
    MemoryError,
)


@dataclass(frozen=True)
class Runtime:
    """Options of running models.

    Attributes:
        provider: ONNX Runtime execution provider.
        threads: number of intra-op threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        OptionError: the provider is not installed, or ``threads`` is negative.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 0

    def __post_init__(self) -> None:
        available = ort.get_available_providers()
        if self.provider not in available:
            raise OptionError(
                f"this ONNX Runtime has no provider {self.provider!r}; "
                f"choose from {', '.join(available)}"
            )
        if self.threads < 0:
            raise OptionError(f"threads must be 0 or more, not {self.threads}")

    def session(
        self,
        model: Model,
        *,
        optimise: bool = True,
        lean: bool = False,
        profile: Path | None = None,
    ) -> Session:
        """Open ``model``.

        Args:
            model: the model to run.
            optimise: whether to leave ONNX Runtime's graph optimisations on.
            lean: whether to do without a memory arena, for runs whose peak memory matters more
                than their speed.
            profile: start of the path of ONNX Runtime's profile of all runs; none by default, nor
                of a model that is run in pieces.

        Raises:
            ModelError: ONNX Runtime refuses the model.
        """
        if model.large:
            return _Pieces(model, lambda part, once: self._open(part, optimise, lean, once))
        return Session(self._open(model, optimise, lean, profile=profile))

    def _open(
        self,
        model: Model,
        optimise: bool,
        lean: bool,
        once: bool = False,
        profile: Path | None = None,
    ) -> ort.InferenceSession:
        options = ort.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 4
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if lean:
            options.enable_cpu_mem_arena = False
            options.enable_mem_pattern = False
        if once:  # for one run, reordering the weights does not pay
            options.add_session_config_entry("session.disable_prepacking", "1")
        if model.folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(model.folder)
            )
        names, values = _scratched(model)
        if names:
            options.add_external_initializers(names, values)
        proto = restamped(model.proto, *_newest()) or model.proto
        try:
            return ort.InferenceSession(
                proto.SerializeToString(), options, providers=[self.provider]
            )
        except _RUN_ERRORS as error:
            raise ModelError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


class Session:
    """An opened model."""

    def __init__(self, inner: ort.InferenceSession) -> None:
        self._inner = inner
        self.outputs: list[str] = [o.name for o in inner.get_outputs()]
        self._inputs = {i.name for i in inner.get_inputs()}
        self._constants = {i.name for i in inner.get_overridable_initializers()}
        self._unnamed = {o.name for o in inner.get_outputs() if o.type in UNNAMED}

    def run(
        self, feed: Feed, outputs: Sequence[str] | None = None, constants: Feed | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model; entries of ``feed`` that it does not read are ignored.

        Args:
            feed: inputs by name.
            outputs: names of the outputs to return; None for all.
            constants: other values of initializers that are inputs too, by name.

        Returns:
            Outputs by name.

        Raises:
            DataError: an input holds an index that is out of range.
            ModelError: ONNX Runtime fails on this input.
        """
        names = list(self.outputs if outputs is None else outputs)
        wanted = {k: v for k, v in feed.items() if k in self._inputs}
        wanted |= {k: v for k, v in (constants or {}).items() if k in self._constants}
        try:
            values = self._values(names, wanted)
        except _RUN_ERRORS as error:
            said = _first_line(error)
            if (outside := _outside(said, wanted)) is not None:
                raise DataError(outside) from error
            raise ModelError(f"ONNX Runtime cannot run the model: {said}") from error
        return dict(zip(names, values, strict=True))

    def end_profile(self) -> Path:
        """Write the profile of the runs; return its path."""
        return Path(self._inner.end_profiling())

    def _values(self, names: Sequence[str], feed: Feed) -> list[Any]:
        unnamed = set(UNNAMED.values())
        if self._unnamed.isdisjoint(names) and not any(
            getattr(v, "dtype", None) in unnamed for v in feed.values()
        ):
            return list(self._inner.run(names, feed))
        given = {
            k: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
                v, int(helper.np_dtype_to_tensor_dtype(v.dtype))
            )
            if v.dtype in unnamed
            else ort.OrtValue.ortvalue_from_numpy(v)
            for k, v in feed.items()
        }
        return [copied(v) for v in self._inner.run_with_ort_values(names, given)]

    def turn(self, feed: Feed, seconds: float = 0.02, least: int = 2) -> list[float]:
        """Run for a while; return the times of the runs in the second half, in seconds.

        A run that takes long needs no others to warm up: its time alone is returned.

        Args:
            feed: inputs by name.
            seconds: time to spend.
            least: smallest number of times to return.
        """
        record: list[float] = []
        start = time.perf_counter()
        while len(record) < 2 * least or time.perf_counter() - start < seconds:
            before = time.perf_counter()
            self.run(feed)
            record.append(time.perf_counter() - before)
            if record[0] > _LONG:
                return record
        return record[len(record) // 2 :]


class _Pieces(Session):
    """Session of a model that is larger than memory, opened piece by piece in each run.

    Args:
        model: the model to run.
        start: opens a piece; the second argument says whether for one run only.
    """

    def __init__(self, model: Model, start: Callable[[Model, bool], ort.InferenceSession]) -> None:
        self._graph, self._start = Graph(model), start
        self._pieces = pieces(self._graph, PIECE)
        self._given = self._graph.input_types()
        self.outputs = self._graph.outputs

    def run(
        self, feed: Feed, outputs: Sequence[str] | None = None, constants: Feed | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Run the model as :meth:`Session.run` does, with its own constants."""
        if constants:
            raise ModelError("a model that is run in pieces takes no other constants")
        return self._run(feed, outputs)[0]

    def turn(self, feed: Feed, seconds: float = 0.0, least: int = 1) -> list[float]:
        """Return the time of one run in seconds, without the time of opening the pieces."""
        return [self._run(feed, None, timed=True)[1]]

    def _run(
        self, feed: Feed, outputs: Sequence[str] | None, *, timed: bool = False
    ) -> tuple[dict[str, npt.NDArray[Any]], float]:
        names = list(self.outputs if outputs is None else outputs)
        if missing := self._given.keys() - feed.keys():
            raise ModelError(
                f"ONNX Runtime cannot run the model: the input {min(missing)!r} is not given"
            )
        values = {k: np.asarray(v) for k, v in feed.items() if k in self._given}
        for name in names:  # an output may be an initializer
            value = self._graph.constant(name) if name not in values else None
            if value is not None:
                values[name] = value
        total = 0.0
        for piece in self._pieces:
            types = {k: _element(k, v) for k, v in values.items()} | self._given
            part = self._graph.extract(types, piece.outputs)
            inner = Session(self._start(part, not timed))
            made = inner.run(values)
            if timed:  # the first run waits for the disk
                before = time.perf_counter()
                inner.run(values)
                total += time.perf_counter() - before
            values = {k: v for k, v in (values | made).items() if k in piece.needed or k in names}
        return {name: values[name] for name in names}, total


def _element(name: str, value: Any) -> int:
    if not isinstance(value, np.ndarray):
        raise ModelError(
            f"{name!r} is not a tensor, and a model above 2 GB cannot be cut into pieces there"
        )
    return int(helper.np_dtype_to_tensor_dtype(value.dtype))


def _scratched(model: Model) -> tuple[list[str], list[ort.OrtValue]]:
    """Names and values of the constants in the temporary file, which ONNX Runtime cannot read."""
    scratch = model.scratch
    tensors = [t for t in model.outside if scratch is not None and scratch.holds(t)]
    return [t.name for t in tensors], [_mapped_value(model, t) for t in tensors]


def _mapped_value(model: Model, tensor: TensorProto) -> ort.OrtValue:
    values = model.read(tensor)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(values, tensor.data_type)


@lru_cache
def _newest() -> tuple[int, int]:
    """The newest default operator set and IR version that this ONNX Runtime takes."""
    opset = next(v for v in range(defs.onnx_opset_version(), 0, -1) if _takes(v, 8))
    return opset, next(v for v in range(int(IR_VERSION), 0, -1) if _takes(min(opset, 17), v))


def _takes(opset: int, ir_version: int) -> bool:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    proto = helper.make_model(
        helper.make_graph(nodes, "probe", [x], [y]),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
    )
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _ORT_ERRORS:
        return False
    return True


#: messages of Gather and similar operators about an index out of range
_BEYOND = re.compile(r"out of data bounds|invalid index|out of range value in index", re.IGNORECASE)
_INDEX = re.compile(r"\b(?:idx|index)\s*=\s*(-?\d+)")
_RANGE = re.compile(r"range \[(-?\d+),\s*(-?\d+)\]")


def _outside(message: str, feed: Feed) -> str | None:
    """Write the message about a feed with an index out of range.

    Args:
        message: message of ONNX Runtime.
        feed: inputs that were given, by name.

    Returns:
        A message that names the input; None where ONNX Runtime failed for another reason, or the
        index is in no input.
    """
    if _BEYOND.search(message) is None:
        return None
    index, bounds = _INDEX.search(message), _RANGE.search(message)
    whole = {n: v for n, v in feed.items() if v.dtype.kind in "iu" and v.any()}
    if index is not None:
        whole = {n: v for n, v in whole.items() if bool(np.any(v == int(index[1])))}
    if not whole:
        return None
    found = f"index {index[1]}" if index is not None else "an index"
    allowed = f", which must be from {bounds[1]} to {bounds[2]}" if bounds is not None else ""
    return (
        f"input {' or '.join(map(repr, whole))} holds {found} out of range{allowed}; give data "
        "that was made for this model, for instance by its own tokenizer or vocabulary"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
