"""Orders carried out on this machine, some at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import Outcome
from onnx_lowrank.fleet.process import run_limited
from onnx_lowrank.fleet.worker import Order

__all__ = ["cores", "run_here"]

#: seconds after which a key press is seen at the latest
_STEP = 0.2


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_here(
    orders: Iterator[Order], limits: Limits, workers: int
) -> Generator[tuple[Order, Path, Outcome], None, None]:
    """Carry out orders, each in a process of its own.

    Args:
        orders: taken one by one, when there is room for the next.
        limits: of each process.
        workers: number of processes at a time.

    Yields:
        Each order with the folder that its files are in and its outcome, in the order in which they
        end. Closing the iterator ends the processes.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers)
    pending: dict[Future[Outcome | None], Order] = {}
    try:
        while True:
            while len(pending) < workers and (order := next(orders, None)) is not None:
                pending[pool.submit(run_limited, order, limits, stop.is_set)] = order
            if not pending:
                return
            for future in wait(pending, _STEP, FIRST_COMPLETED).done:
                outcome = future.result()
                assert outcome is not None  # none has been called off yet
                order = pending.pop(future)
                yield order, Path(order.folder), outcome
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
