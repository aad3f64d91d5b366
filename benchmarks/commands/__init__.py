"""The benchmarks by name, each a module with a :data:`COMMAND`."""

from __future__ import annotations

from benchmarks.command import Command
from benchmarks.commands import (
    ablation,
    alone,
    kept,
    layers,
    models,
    provider,
    pruning,
    real_models,
    search,
    selected,
    times,
    widths,
    workload,
)

__all__ = ["COMMANDS"]

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        models, ablation, layers, alone, pruning, search, workload, real_models, kept, times,
        selected, provider, widths,
    )
}  # fmt: skip
