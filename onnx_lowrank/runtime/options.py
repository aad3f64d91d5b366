"""Options of how models are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.runtime.runtime import Runtime

__all__ = ["RuntimeOptions"]


@dataclass(frozen=True)
class RuntimeOptions(OptionGroup):
    """How models are run."""

    title: ClassVar[str] = "runtime"

    threads: int = option(0, "Threads of ONNX Runtime; 0 leaves the choice to it.", metavar="N")
    provider: str = option(
        "CPUExecutionProvider",
        "ONNX Runtime execution provider that models run on and latency is measured on.",
        metavar="NAME",
    )

    def runtime(self) -> Runtime:
        """How to run models.

        Raises:
            OptionError: there is no such provider, or the number of threads is negative.
        """
        return Runtime(self.provider, self.threads)
