"""Models that are done at once, without a process, and a folder of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator
from importlib import resources
from pathlib import Path

import onnx

from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import Outcome, ended_by
from onnx_lowrank.fleet.worker import MADE, Order
from tests import fixtures_models as fm

COST = {"macs": 100, "params": 10, "bytes": 40}
FIGURES = {
    "before": COST,
    "after": {"macs": 50, "params": 5, "bytes": 20},
    "latency": {"batch": 1, "before_ms": 2.0, "after_ms": 1.0},
    "kept": [0.99, 0.98, None],
    "loss": [0.01, 0.0, 0.02],
    "accuracy": {"before": 0.9, "after": 0.9},
}


CRASH = ended_by(-11, "last <words>")
SCHEMA = json.loads(
    resources.files("onnx_lowrank.report").joinpath("batch.schema.json").read_text("utf8")
)


class Done:
    """In the place of ``run_here``: writes results at once, and remembers the orders.

    Attributes:
        orders: all orders so far, over all runs.
        become: says what becomes of an order; None for a result.
    """

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.become: Callable[[Order], Outcome | None] = lambda _: None

    @property
    def names(self) -> list[str]:
        return [order.name for order in self.orders]

    def __call__(
        self, orders: Iterator[Order], limits: Limits, workers: int
    ) -> Generator[tuple[Order, Path, Outcome], None, None]:
        del limits, workers
        for order in orders:
            self.orders.append(order)
            yield order, Path(order.folder), self.become(order) or written(order)


def written(order: Order) -> Outcome:
    """The outcome of an order whose result has been written, with a file of weights."""
    folder = Path(order.folder, MADE)
    folder.mkdir()
    receipts = [f"{order.name}.report.{ending}" for ending in ("html", "json")]
    files = (f"{order.name}.data", *receipts, order.name)
    for name in files:
        (folder / name).write_bytes(os.fsencode(f"{name} by {len(order.options)} options"))
    return Outcome("done", figures=FIGURES, files=files, seconds=1.5, peak_bytes=1 << 20)


def models(folder: Path, *names: str) -> Path:
    """A folder with models, and with files that are none."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(fm.classifier(), path)
    return folder


def fails(name: str, outcome: Outcome = CRASH) -> Callable[[Order], Outcome | None]:
    return lambda order: outcome if order.name == name else None
