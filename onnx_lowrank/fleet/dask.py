"""Orders carried out by the workers of a Dask cluster, who see the same files.

Each worker starts a process for each model, as one machine does, so that a model that crashes takes
no worker along. When a worker is lost, Dask gives its models to others; what it had begun ends with
it and counts for nothing. The journal stays with the one who gave the orders.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import BatchError
from onnx_lowrank.fleet.local import cores
from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import CRASH, Outcome
from onnx_lowrank.fleet.process import run_limited
from onnx_lowrank.fleet.worker import Order
from onnx_lowrank.runtime.scheduler import PATIENCE, STEP, Attendance, connected, result_of

__all__ = ["carry", "run_on"]


def run_on(
    scheduler: str, orders: Iterator[Order], limits: Limits
) -> Generator[tuple[Order, Path, Outcome], None, None]:
    """Carry out orders on the workers of a scheduler.

    Args:
        scheduler: its address, ``HOST:PORT``.
        orders: taken one by one, so that each thread of a worker has the next at hand.
        limits: of each process.

    Yields:
        Each order with the folder that its files are in and its outcome, in the order in which they
        end. Closing the iterator gives up the rest; their processes end when their folders go.

    Raises:
        OptionError: Dask is not installed, or no scheduler or worker answers.
        BatchError: the scheduler has gone, or all its workers for long.
    """
    client = connected(scheduler)
    from distributed import wait

    pending: dict[Any, Order] = {}
    attendance = Attendance(client)
    try:
        while True:
            room = 2 * max(1, sum(attendance.threads().values()))
            while len(pending) < room and (order := next(orders, None)) is not None:
                future = client.submit(carry, order, limits, pure=False, key=_name(order))
                pending[future] = order
            if not pending:
                return
            with client.as_current(), suppress(TimeoutError):
                wait(list(pending), timeout=STEP, return_when="FIRST_COMPLETED")
            for future in [future for future in pending if future.done()]:
                order = pending.pop(future)
                yield order, *_result(future, order, attendance)
    except OSError as error:  # of a connection; what is done with files has errors of its own
        raise BatchError(
            f"the scheduler at {scheduler} cannot be reached any more ({error}); what is done is "
            "in the journal, and the same command goes on from there"
        ) from error
    finally:
        with suppress(OSError, TimeoutError):
            client.cancel(list(pending))
        client.close(timeout=PATIENCE)


def carry(order: Order, limits: Limits) -> tuple[str, Outcome] | None:
    """Carry out an order on a worker of Dask, in a folder of its own within that of the order.

    Another worker may have begun the same order before it was lost.

    Returns:
        The folder and the outcome; None where the order's folder is not there.
    """
    from distributed import get_worker

    if not Path(order.folder).is_dir():
        return None
    beside = max(1, int(get_worker().state.nthreads))
    folder = Path(order.folder, secrets.token_hex(4))
    folder.mkdir()
    own = replace(order, folder=str(folder), threads=order.threads or max(1, cores() // beside))
    outcome = run_limited(own, limits, lambda: not folder.is_dir())
    return None if outcome is None else (str(folder), outcome)


def _name(order: Order) -> str:
    """Name of an order on the pages of Dask; that of its folder makes it unique."""
    return f"onnx-lowrank-{order.name}-{Path(order.folder).name}"


def _result(future: Any, order: Order, attendance: Attendance) -> tuple[Path, Outcome]:
    """The outcome of an order that has ended, well or not.

    Raises:
        BatchError: all workers have been gone for long.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        found = result_of(future, attendance)
    except BatchError:
        raise
    except FutureCancelledError as error:
        raise ConnectionError(str(error)) from error
    except KilledWorker as error:
        why = f"every worker of Dask that began it was lost ({error})"
    except Exception as error:  # of Dask, or of a worker whose packages are other ones
        why = f"its worker of Dask failed ({type(error).__name__}: {error})"
    else:
        if found is not None:
            return Path(found[0]), found[1]
        why = "its worker of Dask does not see the folder of results; share it under the same name"
    return Path(order.folder), Outcome("failed", CRASH, exit_code=1, reason=why)
