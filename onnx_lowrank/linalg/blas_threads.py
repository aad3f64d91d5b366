"""Number of threads of the linear algebra.

Most layers give thousands of small matrices. A BLAS that splits each over all cores spends its time
waiting (five times as long on a busy machine), and may add up in another order from run to run. So
one thread is the rule, and only wide layers use all of them. Layers whose work does not depend on
each other are worked on side by side instead, each on a thread of its own, and give the same bits
with any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

__all__ = ["blas_for", "blas_threads", "limited_blas", "one_thread", "side_by_side"]

T = TypeVar("T")
R = TypeVar("R")

#: smallest number of columns of a product that is worth splitting
WIDE = 2048
#: whether a thread works beside others already
_beside = threading.local()
#: number of columns from which on items are worked on one after the other, for want of memory
ALONE = 4096


@contextmanager
def blas_for(width: int) -> Iterator[None]:
    """Limit linear algebra to one thread, unless matrices of ``width`` columns are wide."""
    if width >= WIDE:
        yield
        return
    with one_thread():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit linear algebra to one thread, for work with many small matrices."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


def blas_threads() -> int:
    """Number of threads that linear algebra uses for wide layers."""
    return _threads_of(_controller())


@contextmanager
def limited_blas(threads: int) -> Iterator[None]:
    """Let linear algebra have this number of threads for wide layers, also more than before."""
    with _controller().limit(limits=threads, user_api="blas"):
        yield


def side_by_side(
    work: Callable[[T], R],
    items: Sequence[T],
    widths: Sequence[int],
    done: Callable[[int], object] = lambda count: None,
) -> list[R]:
    """Do independent work with each item, on as many threads as linear algebra may use.

    Args:
        work: what is to be done with an item; its result must depend on nothing else.
        items: the items.
        widths: number of columns of the widest matrices that the work on each item has. The widest
            are begun first; items of :data:`ALONE` columns or more are done one after the other,
            with all threads for each.
        done: told of the number of items that have been done since it was told last.

    Returns:
        The results, in the order of the items.
    """
    found: dict[int, R] = {}
    narrow = [i for i, width in enumerate(widths) if width < ALONE]
    narrow.sort(key=lambda i: -widths[i])
    workers = blas_threads()
    if min(workers, len(narrow)) > 1:
        with one_thread(), _pool(workers) as pool:
            try:
                for i, result in zip(
                    narrow, pool.map(work, [items[i] for i in narrow]), strict=True
                ):
                    found[i] = result
                    done(1)
            finally:  # after a failure nothing more is begun
                pool.shutdown(cancel_futures=True)
    for i, item in enumerate(items):
        if i not in found:
            with blas_for(widths[i]):
                found[i] = work(item)
            done(1)
    return [found[i] for i in range(len(items))]


def in_two(one: Callable[[], object], other: Callable[[], object]) -> None:
    """Do two things, at the same time where linear algebra leaves a core idle.

    So it is where it may use several threads, but is limited to one, and where this is not done
    beside other work already.
    """
    if getattr(_beside, "busy", False) or _most_threads() < 2 or blas_threads() > 1:
        one()
        other()
        return
    waiting = _helper().submit(one)
    try:
        other()
    finally:
        waiting.result()


def _pool(workers: int) -> ThreadPoolExecutor:
    """Threads that know that others work beside them."""

    def begin() -> None:
        _beside.busy = True

    return ThreadPoolExecutor(workers, initializer=begin)


@cache
def _helper() -> ThreadPoolExecutor:
    return _pool(1)


@cache
def _controller() -> Any:
    _most_threads()
    return ThreadpoolController()


@cache
def _most_threads() -> int:
    """Number of threads that linear algebra had before any limit of ours."""
    return _threads_of(ThreadpoolController())


def _threads_of(controller: Any) -> int:
    return max([1, *(int(library["num_threads"]) for library in controller.info())])
