from __future__ import annotations

import platform
import re

import pytest

from onnx_lowrank.runtime import machine as module
from onnx_lowrank.runtime.machine import machine, surroundings
from onnx_lowrank.runtime.runtime import Runtime


def test_a_machine_is_told_by_all_that_times_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one = machine(Runtime(threads=1))
    assert one == machine(Runtime(threads=1))
    assert one["provider"] == "CPUExecutionProvider"
    assert one["runtime"].startswith("onnxruntime")
    assert one["processor"]
    assert machine(Runtime(threads=2)) != one
    monkeypatch.setattr(module, "_runtime_version", lambda: "onnxruntime 0.0.1")
    assert machine(Runtime(threads=1)) == {**one, "runtime": "onnxruntime 0.0.1"}


def test_surroundings_are_for_people() -> None:
    found = surroundings(Runtime(threads=1))
    assert found["provider"] == "CPUExecutionProvider"
    assert found["threads"] == "1"
    assert found["python"] == platform.python_version()
    assert found["processor"]
    assert not re.search(r" [0-9a-f]{12}$", found["processor"]), "no digest"
    assert all(found.values())
