"""How calibration samples are streamed through a model."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.workers import Workers

__all__ = ["MEMORY", "Streaming"]

#: bytes for moments and stored tensors at a time
MEMORY = 512 << 20


@dataclass(frozen=True)
class Streaming:
    """How samples are streamed through a model, and what may be held of them.

    Attributes:
        runtime: runs the model.
        seed: random seed of the positions that are drawn where a sample has many.
        progress: is told of every sample, or of every layer that is done.
        memory: bytes for what is gathered and for captured tensors at a time. Where they need
            more, the rest is stored on disk, or the data is read several times.
        workers: who reads the samples; None reads them here.
    """

    runtime: Runtime
    seed: int
    progress: Progress
    memory: int = MEMORY
    workers: Workers | None = None
