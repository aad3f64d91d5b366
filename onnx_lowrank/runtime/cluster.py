"""Workers of a Dask cluster, who run the calls of one job.

A call goes to a worker by Dask's own messages, with its arguments and its answer. When a worker is
lost, Dask gives its calls to others. Each process runs one call at a time, whatever its number of
threads: how many threads linear algebra has is a setting of the process, which calls side by side
would change for one another.
"""

from __future__ import annotations

import pickle
import secrets
import threading
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from onnx_lowrank._version import __version__
from onnx_lowrank.errors import BatchError, LowRankError, OptionError
from onnx_lowrank.linalg.blas_threads import blas_threads, limited_blas
from onnx_lowrank.runtime.scheduler import PATIENCE, STEP, Attendance, connected, result_of

__all__ = ["Cluster"]

S = TypeVar("S")
A = TypeVar("A")
R = TypeVar("R")

#: calls that each worker has at hand, and those that are out for each at the most, among them those
#: whose answers wait for that to an earlier call
_AHEAD, _OUT = 2, 4

#: held by the call that runs in this process
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Cluster:
    """The workers of a scheduler, as :class:`~onnx_lowrank.runtime.workers.Workers`.

    Attributes:
        scheduler: its address, ``HOST:PORT``.
    """

    scheduler: str

    def check(self) -> None:
        """Refuse a cluster that cannot work, before anything is done for it.

        Raises:
            OptionError: Dask is not installed, no scheduler or worker answers, or workers have
                another version of onnx-lowrank.
        """
        client = connected(self.scheduler)
        try:
            _check_versions(client.run(_version), __version__)
        except LowRankError:
            raise
        except Exception as error:  # of Dask, or of a worker without this module
            raise OptionError(
                f"a worker of the Dask scheduler at {self.scheduler} cannot run onnx-lowrank "
                f"({type(error).__name__}: {error}); install version {__version__} there"
            ) from error
        finally:
            client.close(timeout=PATIENCE)

    def answers(
        self, call: Callable[[S, A], R], shared: S, arguments: Iterable[A]
    ) -> Generator[R, None, None]:
        """Run a call for each argument; see :class:`~onnx_lowrank.runtime.workers.Workers`.

        Raises:
            LowRankError: what a call raises.
            OptionError: no scheduler or worker answers, or a worker has another version.
            BatchError: the scheduler has gone, or no worker could run a call.
        """
        client = connected(self.scheduler)
        name, rest = f"onnx-lowrank-{secrets.token_hex(4)}", iter(arguments)
        pending, sent, threads = _Pending(client), 0, blas_threads()
        try:
            with self._reached():
                # a call of its own, so that it is made again where its worker is lost
                held = _submitted(client, f"{name}-shared", _held, _Sealed.of(shared))
            argument = next(rest, _END)
            while pending.calls or argument is not _END:
                with self._reached():
                    worker = pending.idle() if argument is not _END else None
                if worker is not None:
                    what = __version__, threads, call, held, _Sealed.of(argument)
                    with self._reached():
                        future = _submitted(client, f"{name}-{sent}", _called, *what, on=worker)
                    pending.calls.append((future, worker))
                    sent, argument = sent + 1, next(rest, _END)
                    continue
                with self._reached():
                    pending.wait()
                if pending.calls and (first := pending.calls[0][0]).done():
                    with self._reached():
                        answer = _answer(first, pending.attendance)
                    pending.calls.popleft()
                    yield answer
                    del answer
        finally:
            with suppress(OSError, TimeoutError):
                client.cancel([future for future, _ in pending.calls])
            client.close(timeout=PATIENCE)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Word what becomes of a lost connection."""
        try:
            yield
        except OSError as error:
            raise BatchError(
                f"the scheduler at {self.scheduler} cannot be reached any more ({error}); start "
                "it again, and give the same command"
            ) from error


#: stands behind the last argument
_END: Any = object()


class _Sealed:
    """A value that is opened where it is used.

    Dask opens messages when they arrive, and a worker that cannot, for want of a package, ends; so
    the error would be lost.

    Args:
        text: the value without the contents of its arrays.
        arrays: these contents.
    """

    def __init__(self, text: bytes, arrays: Sequence[Any]) -> None:
        self._text, self._arrays = text, arrays
        self._opened: list[Any] = []

    @classmethod
    def of(cls, value: Any) -> _Sealed:
        """Seal a value."""
        from distributed.protocol import pickle as messages

        arrays: list[Any] = []
        return cls(messages.dumps(value, buffer_callback=arrays.append), arrays)

    def __reduce__(self) -> Any:
        """What is sent; what was opened stays where it is."""
        return _Sealed, (self._text, [pickle.PickleBuffer(a) for a in self._arrays])

    @property
    def value(self) -> Any:
        """The value, which is opened once."""
        if not self._opened:
            from distributed.protocol import pickle as messages

            self._opened.append(messages.loads(self._text, buffers=self._arrays))
        return self._opened[0]


class _Pending:
    """Calls that were sent out, in their order, each with the address of the worker it went to.

    Dask alone would keep all short calls where the first has been, beside what they share.
    """

    def __init__(self, client: Any) -> None:
        self.calls: deque[tuple[Any, str]] = deque()
        self._client = client
        self.attendance = Attendance(client)

    def idle(self) -> str | None:
        """The worker that has the least to do; None where all have enough at hand or are gone.

        Raises:
            BatchError: there has been none for long.
        """
        workers = list(self.attendance.threads())
        if not workers or len(self.calls) >= _OUT * len(workers):
            return None
        load = Counter(worker for future, worker in self.calls if not future.done())
        least = min(workers, key=lambda worker: load[worker])
        return least if load[least] < _AHEAD else None

    def wait(self) -> None:
        """Wait a little while for a call to end, unless the first has ended, or for a worker.

        Raises:
            BatchError: there has been no worker for long.
        """
        from distributed import wait

        if self.calls and self.calls[0][0].done():
            return
        self.attendance.threads()
        with self._client.as_current(), suppress(TimeoutError):
            if left := [future for future, _ in self.calls if not future.done()]:
                wait(left, timeout=STEP, return_when="FIRST_COMPLETED")
            else:
                self._client.wait_for_workers(1, timeout=STEP)


def _submitted(
    client: Any, key: str, call: Callable[..., Any], *arguments: Any, on: str | None = None
) -> Any:
    """Send a call out, to a worker or, where that is lost, to another."""
    where = {} if on is None else {"workers": [on], "allow_other_workers": True}
    with warnings.catch_warnings():  # a model or samples in a message are large
        warnings.simplefilter("ignore")
        return client.submit(call, *arguments, pure=False, key=key, **where)


def _answer(future: Any, attendance: Attendance) -> Any:
    """The answer to a call that has ended.

    Raises:
        LowRankError: what the call raises.
        BatchError: it could not be run, or there has been no worker for long.
        OSError: the scheduler has gone.
    """
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    failed = future.status == "error"
    try:
        return result_of(future, attendance)
    except FutureCancelledError as error:
        raise ConnectionError(str(error)) from error
    except KilledWorker as error:
        raise BatchError(
            f"every worker of Dask that began a call was lost ({error}); give workers more "
            "memory, or leave the scheduler out"
        ) from error
    except LowRankError:
        raise
    except Exception as error:
        if not failed:  # it was not the call that raised it
            raise
        raise BatchError(
            f"a worker of Dask failed ({type(error).__name__}: {error}); install the same "
            "packages there as here, plug-ins included, or leave the scheduler out"
        ) from error


def _held(shared: _Sealed) -> _Sealed:
    """What a worker keeps for all calls."""
    return shared


def _called(
    version: str,
    threads: int,
    call: Callable[[Any, Any], Any],
    shared: _Sealed,
    argument: _Sealed,
) -> Any:
    """Run a call on a worker, with the threads of linear algebra that it would have at the sender.

    With others, wide products may add up in another order; and Dask leaves its workers one.

    Raises:
        OptionError: the worker has another version than the one who sent it.
    """
    from distributed import get_worker

    _check_versions({get_worker().address: __version__}, version)
    with _ONE_AT_A_TIME, limited_blas(threads):
        return call(shared.value, argument.value)


def _version() -> str:
    return __version__


def _check_versions(found: dict[str, str], wanted: str) -> None:
    for worker, version in found.items():
        if version != wanted:
            raise OptionError(
                f"a worker of Dask ({worker}) has onnx-lowrank {version}, and this is {wanted}; "
                "install the same version there"
            )
