"""Processes: what ends them, and what is known of them then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from onnx_lowrank.fleet import process
from onnx_lowrank.fleet.options import Limits
from onnx_lowrank.fleet.outcome import Outcome
from onnx_lowrank.fleet.process import LOG, run_limited
from onnx_lowrank.fleet.worker import Order

MIB = 1 << 20
NONE = Limits()
Run = Callable[..., Outcome | None]

#: writes that all went well, as a worker does
WELL = """
import json, sys
paths, order = (json.loads(sys.stdin.readline()) for _ in range(2))
outcome = {"status": "done", "cause": "", "error": "", "exit_code": 0, "reason": order["name"],
           "figures": {}, "files": ["a"], "seconds": 0, "peak_bytes": None}
"""
SAY = 'open(order["folder"] + "/outcome.json", "w").write(json.dumps(outcome))\n'


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(program, limits, called_off)``: what is known of a process that runs a program."""

    def ran(program: str, limits: Limits = NONE, *more: Callable[[], bool]) -> Outcome | None:
        monkeypatch.setattr(process, "_PROGRAM", program)
        order = Order("m.onnx", "name", None, {}, str(tmp_path), 3, "cmd")
        return run_limited(order, limits, *more)

    return ran


def failed(outcome: Outcome | None) -> Outcome:
    assert outcome is not None
    assert outcome.failed
    return outcome


def test_what_it_wrote_is_the_outcome(run: Run) -> None:
    outcome = run(WELL + "import time; block = bytearray(64 << 20); time.sleep(0.8)\n" + SAY)
    assert outcome is not None
    assert (outcome.status, outcome.reason, outcome.files) == ("done", "name", ("a",))
    assert outcome.seconds > 0.8
    assert outcome.peak_bytes is not None
    assert 64 * MIB < outcome.peak_bytes < 256 * MIB


def test_libraries_get_their_share_of_threads_and_no_import_comes_from_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    usual = process._PROGRAM.partition("; from onnx_lowrank")[0]
    said = "; import os; raise SystemExit(int(os.environ['OMP_NUM_THREADS']) + 40)"
    assert failed(run(usual + said)).exit_code == 43


def test_beyond_the_time_it_is_ended_with_its_children(run: Run, tmp_path: Path) -> None:
    child = f"import time; time.sleep(60)  # {tmp_path}"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    begun = time.monotonic()
    outcome = failed(run(program, Limits(seconds=0.5)))
    assert 0.5 < time.monotonic() - begun < 10
    assert (outcome.cause, outcome.exit_code) == ("time-limit", 124)
    assert "longer than 0.5 seconds; raise --time-limit" in outcome.reason
    _eventually(
        lambda: (
            not any(child in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
        )
    )


@pytest.mark.skipif(os.name == "nt", reason="sessions as POSIX has them")
def test_a_child_that_has_left_its_parent_is_ended_too(run: Run, tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(
        "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    left = (
        "import subprocess, sys; subprocess.Popen([sys.executable, "
        f"{str(tmp_path / 'child.py')!r}, {str(tmp_path / 'pid')!r}])"
    )
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {left!r}]); "
    program += "import time; time.sleep(60)"
    file = tmp_path / "pid"
    assert run(program, NONE, lambda: file.is_file() and bool(file.read_text())) is None
    _eventually(lambda: _gone(int(file.read_text())))


@pytest.mark.parametrize("where", ["itself", "a child"])
def test_beyond_the_memory_it_is_ended(where: str, run: Run) -> None:
    program = "import time; block = bytearray(200 << 20); time.sleep(60)"
    if where == "a child":
        program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"
    outcome = failed(run(program, Limits(seconds=30, bytes=100 * MIB)))
    assert (outcome.cause, outcome.exit_code) == ("memory-limit", 137)
    assert "100 MiB are allowed; raise --memory-limit" in outcome.reason
    assert outcome.peak_bytes is not None
    assert outcome.peak_bytes > 100 * MIB


def test_pages_of_mapped_files_are_no_memory_that_it_takes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(bytes(1 << 20) * 80)
    read = (
        "import mmap, time\n"
        f"with open({str(tmp_path / 'weights')!r}, 'rb') as f:\n"
        "    m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "    sum(m[i] for i in range(0, len(m), 4096)); time.sleep(0.8)\n"
    )
    outcome = run(WELL + read + SAY, Limits(bytes=40 * MIB))
    assert outcome is not None
    assert outcome.status == "done"


@pytest.mark.parametrize(
    ("program", "code", "part"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 139, "ended by SIGSEGV;"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137, "memory runs out"),
        ("import os; print('last words', flush=True); os._exit(7)", 7, "code 7: last words;"),
        ("pass", 1, "its process ended with code 0;"),
        (WELL + "outcome.pop('files')\n" + SAY, 1, "its process ended with code 0;"),
    ],
)
def test_a_process_that_ends_without_a_word(program: str, code: int, part: str, run: Run) -> None:
    outcome = failed(run(program))
    assert (outcome.cause, outcome.exit_code) == ("crash", code)
    assert part in outcome.reason


def test_a_process_that_cannot_be_started(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(process.subprocess, "Popen", full)
    outcome = failed(run(WELL))
    assert (outcome.cause, outcome.exit_code) == ("crash", 1)
    assert "could not be started ([Errno 11] Resource temporarily unavailable)" in outcome.reason


def test_it_is_ended_when_it_is_called_off(run: Run) -> None:
    begun = time.monotonic()
    assert run("import time; time.sleep(60)", NONE, lambda: True) is None
    assert time.monotonic() - begun < 10


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="signals as POSIX has them")
def test_it_ends_itself_where_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    """The one who started it is killed, and so can tell it nothing."""
    orphan = (
        "import os, time; from onnx_lowrank.fleet import worker; "
        "worker.carried_out = lambda order: time.sleep(60); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); worker.main()"
    )
    start = (
        "import json, sys; from onnx_lowrank.fleet import process; "
        "from onnx_lowrank.fleet.options import Limits; "
        "from onnx_lowrank.fleet.worker import Order; "
        f"process._PROGRAM = 'import sys; sys.stdin.buffer.readline(); ' + {orphan!r}; "
        f"process.run_limited(Order('m', 'n', None, {{}}, {str(tmp_path)!r}, 1, ''), Limits())"
    )
    with subprocess.Popen([sys.executable, "-c", start]) as parent:
        pid = _eventually(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
        assert psutil.pid_exists(int(pid)), (tmp_path / LOG).read_text()
        parent.send_signal(signal.SIGKILL)
    _eventually(lambda: _gone(int(pid)))


def _gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have asked for its exit code yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _eventually(found: Callable[[], object]) -> str:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if value := found():
            return str(value)
        time.sleep(0.05)
    raise AssertionError("not within a minute")
