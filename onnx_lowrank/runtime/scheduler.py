"""The connection to a Dask scheduler, whose workers come and go.

One model on many machines (:mod:`onnx_lowrank.runtime.cluster`) and many models on them
(:mod:`onnx_lowrank.fleet.dask`) hold it alike.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

from onnx_lowrank.errors import BatchError, OptionError

__all__ = ["PATIENCE", "STEP", "Attendance", "connected", "result_of"]

#: seconds that a scheduler and its first worker are waited for
PATIENCE = 10
#: seconds after which a key press is seen at the latest
STEP = 0.2
#: seconds without any worker after which calls that are out are given up
ABSENCE = 60.0


def connected(scheduler: str) -> Any:
    """A client of a scheduler that has a worker.

    Args:
        scheduler: its address, ``HOST:PORT``.

    Raises:
        OptionError: Dask is not installed, or no scheduler or worker answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise OptionError(
            '--scheduler needs Dask; install it with: pip install "onnx-lowrank[dask]"'
        ) from None
    try:
        with warnings.catch_warnings():  # of versions of packages that differ, and go nowhere
            warnings.simplefilter("ignore")
            client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {scheduler} ({error}); start one with: dask scheduler"
        ) from error
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        client.close()
        raise OptionError(
            f"the Dask scheduler at {scheduler} has no worker; start one with: dask worker "
            f"{scheduler}"
        ) from None
    return client


class Attendance:
    """The workers of a scheduler, which come and go.

    Args:
        client: of the scheduler.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._seen = time.monotonic()

    def threads(self) -> dict[str, int]:
        """Numbers of threads of the workers that are there now, by address.

        Raises:
            BatchError: there has been none for a minute.
        """
        found: dict[str, int] = self._client.nthreads()
        now = time.monotonic()
        if found:
            self._seen = now
        elif now - self._seen > ABSENCE:
            raise BatchError(
                f"all workers of Dask have been gone for {ABSENCE:.0f} s; start some, and give "
                "the same command again"
            )
        return dict(found)


def result_of(future: Any, attendance: Attendance) -> Any:
    """The result of a call that has ended.

    It lies with the worker that made it. Where that goes meanwhile, another makes it again.

    Raises:
        BatchError: there has been no worker for long.
        Exception: what the call raises, or Dask.
    """
    from distributed import TimeoutError as WaitedTooLong

    patience = STEP
    while True:
        failed = future.status == "error"
        try:
            return future.result(timeout=patience)
        except WaitedTooLong:
            if failed:  # the call raised it
                raise
            attendance.threads()
            patience *= 2  # asking again begins the transfer anew
