"""Memory that is freed stays with the process, where the C library can be told so."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

import pytest

from onnx_lowrank.runtime.allocator import keep_freed_memory, return_freed_memory

#: page faults of taking and freeing 32 MB 50 times, after a first time
FAULTS = """
import resource, sys
import numpy as np
from onnx_lowrank.runtime.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory({})
np.ones(4 << 20).sum()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(4 << 20).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GLIBC = hasattr(ctypes.CDLL(None) if sys.platform != "win32" else object(), "mallopt")


@pytest.mark.skipif(not GLIBC, reason="not glibc")
def test_freed_blocks_need_no_fresh_pages() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("keep") < 0.2 * faults("not")


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_has_set_stays(name: str) -> None:
    assert not keep_freed_memory({name: "1"})


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: Any) -> object:
        return object()

    monkeypatch.setattr(ctypes, "CDLL", without)
    assert not keep_freed_memory({})


#: resident pages before and after what was freed behind something that stays goes back
RETURNED = """
import numpy as np
from onnx_lowrank.runtime.allocator import keep_freed_memory, return_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1])
assert keep_freed_memory({})
blocks = [np.ones(1 << 17) for _ in range(200)]
del blocks[:-1]
before = resident()
return_freed_memory()
print(before, resident())
"""


@pytest.mark.skipif(not GLIBC or sys.platform != "linux", reason="not glibc, or no /proc")
def test_freed_blocks_go_back_when_asked_for() -> None:
    command = [sys.executable, "-c", RETURNED]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    before, after = map(int, said.split())
    assert after < before - 100 * (1 << 20) / 4096


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    return_freed_memory()
