"""How many threads the linear algebra takes.

Most layers give small matrices, thousands of them. A BLAS that splits each over all cores spends
its time waiting, five times the whole on a busy machine, and may add up in another order from run
to run. So one thread is the rule, and all of them serve wide layers alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["blas_for"]

#: columns from which a product is worth splitting
WIDE = 2048


@contextmanager
def blas_for(width: int) -> Iterator[None]:
    """Linear algebra on matrices of ``width`` columns: one thread, or all where they are wide."""
    if width >= WIDE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    return ThreadpoolController()
