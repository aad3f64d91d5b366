"""Number of threads of the linear algebra.

Most layers give thousands of small matrices. A BLAS that splits each over all cores spends its time
waiting (five times as long on a busy machine), and may add up in another order from run to run. So
one thread is the rule, and only wide layers use all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

__all__ = ["blas_for"]

#: smallest number of columns of a product that is worth splitting
WIDE = 2048


@contextmanager
def blas_for(width: int) -> Iterator[None]:
    """Limit linear algebra to one thread, unless matrices of ``width`` columns are wide."""
    if width >= WIDE:
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    return ThreadpoolController()
