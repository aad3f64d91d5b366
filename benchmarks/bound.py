"""Models timed with inputs and outputs on the device of their execution provider."""

from __future__ import annotations

import argparse
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

__all__ = [
    "CPU",
    "PRECISIONS",
    "BoundModel",
    "add_device_arguments",
    "best_ms",
    "device_name",
    "in_precision",
]

CPU = "CPUExecutionProvider"
PRECISIONS = ("float32", "float16")

#: where tensors of a provider lie; of any other one, in the processor's memory
_DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}

#: runs before the first that is timed, in which a provider may try its algorithms
_WARM = 5

#: rounds in which models take turns
_ROUNDS = 5


def in_precision(proto: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The model with weights and activations in a precision; inputs and outputs keep their types.

    Args:
        proto: a model in single precision; it is not changed.
        precision: one of :data:`PRECISIONS`.
    """
    if precision == "float32":
        return proto
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    converted: onnx.ModelProto = convert_float_to_float16(copied, keep_io_types=True)
    return converted


class BoundModel:
    """An opened model whose inputs are on the device already and whose outputs stay there.

    What a run takes is then what the device takes, with the call that starts its kernels.

    Args:
        proto: the model.
        feed: its inputs by name.
        provider: execution provider of ONNX Runtime; what it cannot run, the processor does.
    """

    def __init__(
        self, proto: onnx.ModelProto, feed: dict[str, npt.NDArray[Any]], provider: str
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=list(dict.fromkeys([provider, CPU]))
        )
        self._feed = feed
        self._binding = self._session.io_binding()
        device = _DEVICES.get(provider, "cpu")
        for name, value in feed.items():
            there = onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0)
            self._binding.bind_ortvalue_input(name, there)
        for output in self._session.get_outputs():
            self._binding.bind_output(output.name, device, 0)
        for _ in range(_WARM):
            self.run()

    def run(self) -> None:
        """Run once, to the end."""
        self._session.run_with_iobinding(self._binding)

    def run_with_copies(self) -> None:
        """Run once as most programs do: inputs from arrays of NumPy, outputs into such."""
        self._session.run(None, self._feed)


def best_ms(models: Sequence[BoundModel], seconds: float, *, copies: bool = False) -> list[float]:
    """Best time of one run of each model in milliseconds; they take turns.

    Args:
        models: the models.
        seconds: time to spend on each.
        copies: whether the time contains copies of inputs and outputs.
    """
    best = np.full(len(models), np.inf)
    for _ in range(_ROUNDS):
        for place, model in enumerate(models):
            run = model.run_with_copies if copies else model.run
            end = time.perf_counter() + seconds / _ROUNDS
            run()
            while True:
                before = time.perf_counter()
                run()
                now = time.perf_counter()
                best[place] = min(best[place], now - before)
                if now > end:
                    break
    return [1e3 * float(b) for b in best]


def device_name(provider: str) -> str:
    """The name of the card that a provider of NVIDIA's runs on; empty for others."""
    if provider not in _DEVICES:
        return ""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()[0].strip()


def add_device_arguments(parser: argparse.ArgumentParser, batches: Sequence[int]) -> None:
    """Declare provider, batch sizes and precisions.

    Args:
        parser: of a benchmark.
        batches: sizes by default.
    """
    parser.add_argument(
        "--provider", default="CUDAExecutionProvider",
        help="execution provider of ONNX Runtime; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--batches", nargs="+", type=int, default=list(batches), metavar="N",
        help="samples of a timed inference; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS,
        metavar="PRECISION", help="of weights and activations; default: %(default)s",
    )  # fmt: skip
