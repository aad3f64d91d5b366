"""An opened model, to be run and timed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnxruntime as ort
from onnx import helper

from onnx_lowrank.errors import DataError, ModelError
from onnx_lowrank.runtime.element_types import UNNAMED, copied
from onnx_lowrank.runtime.ort_errors import RUN_ERRORS, first_line, index_out_of_range

__all__ = ["Feed", "Session"]

Feed = Mapping[str, npt.NDArray[Any]]

#: seconds that a run takes whose time no idle thread or cold cache makes much longer
_LONG = 0.3


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
        except RUN_ERRORS as error:
            said = first_line(error)
            if (outside := index_out_of_range(said, wanted)) is not None:
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
