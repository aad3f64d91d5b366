"""The same on Dask: a cluster of processes, of which one is killed in the middle."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from onnx_lowrank.errors import BatchError, OptionError
from onnx_lowrank.fleet import process as process_module
from onnx_lowrank.fleet.batch import Standing, batch
from onnx_lowrank.fleet.journal import JOURNAL
from onnx_lowrank.runtime import scheduler as scheduler_module
from tests.fleet.fakes import models
from tests.support import DASK

pytestmark = DASK

#: every worker, also one that takes the place of another, lets its processes do this: wait a
#: little, and write who they are
PLUGIN = '''
import distributed

WORK = """
import json, os, sys, time
json.loads(sys.stdin.readline()); order = json.loads(sys.stdin.readline())
os.mkdir(order["folder"] + "/made")
time.sleep(60 if order["name"] == "long.onnx" else 0.5)
if order["name"] == "bad.onnx":
    os.kill(os.getpid(), 11)
with open(order["folder"] + "/made/" + order["name"], "w") as f:
    f.write(str(os.getppid()))
outcome = {"status": "done", "cause": "", "error": "", "exit_code": 0, "reason": "",
           "figures": {}, "files": [order["name"]], "seconds": 0, "peak_bytes": None}
with open(order["folder"] + "/outcome.json", "w") as f:
    json.dump(outcome, f)
"""

class Quick(distributed.WorkerPlugin):
    def setup(self, worker):
        from onnx_lowrank.fleet import process
        process._PROGRAM = WORK
'''


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import distributed

    # of __main__, so that it travels by value: workers cannot import this file
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(PLUGIN, space)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0",
            silence_logs=False,
        ) as made,
        distributed.Client(made, set_as_default=False) as client,
    ):  # fmt: skip
        client.wait_for_workers(2, timeout=60)
        client.register_plugin(space["Quick"]())
        yield made


def busy_workers(cluster: Any) -> list[int]:
    """Workers with a process below them; one that has just died, or is not up again, has none."""
    found = []
    for pid in [worker.pid for worker in cluster.workers.values()]:
        with suppress(psutil.NoSuchProcess):
            if pid is not None and psutil.Process(pid).children():
                found.append(pid)
    return found


def test_a_worker_is_killed_and_nothing_is_lost(cluster: Any, tmp_path: Path) -> None:
    names = [f"{letter}.onnx" for letter in "abcdefg"]
    folder = models(tmp_path / "in", *names, "bad.onnx")
    out = tmp_path / "out"
    killed: list[int] = []

    def told(standing: Standing) -> None:
        if standing.done and not killed and (busy := busy_workers(cluster)):
            os.kill(busy[0], signal.SIGKILL)
            killed.append(busy[0])

    made = batch(folder, out, scheduler=cluster.scheduler_address, told=told)
    assert len(killed) == 1
    found = {row["model"]: (row["status"], row["cause"]) for row in made.summary["models"]}
    assert found == {**dict.fromkeys(names, ("done", "")), "bad.onnx": ("failed", "crash")}
    assert len((out / JOURNAL).read_text().splitlines()) == 8
    assert {p.name for p in out.iterdir()} == {
        *names, JOURNAL, "summary.html", "summary.json",
    }  # fmt: skip
    assert {int((out / name).read_text()) for name in names} - set(killed)
    # again: nothing is left to do
    again = batch(folder, out, scheduler=cluster.scheduler_address)
    assert again.summary["models"] == made.summary["models"]


def test_an_interruption_ends_the_processes(cluster: Any, tmp_path: Path) -> None:
    folder = models(tmp_path / "in", "a.onnx", "long.onnx")

    def told(standing: Standing) -> None:
        if standing.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch(folder, tmp_path / "out", scheduler=cluster.scheduler_address, told=told)
    assert not (tmp_path / "out" / ".work").exists()
    _eventually(lambda: not busy_workers(cluster))
    assert len((tmp_path / "out" / JOURNAL).read_text().splitlines()) == 1


def test_nobody_answers(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distributed

    monkeypatch.setattr(scheduler_module, "PATIENCE", 1)
    folder = models(tmp_path / "in", "a.onnx")
    with pytest.raises(OptionError, match=r"no Dask scheduler answers at 127.0.0.1:9 .*dask sched"):
        batch(folder, tmp_path / "out", scheduler="127.0.0.1:9")
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=False) as empty,
        pytest.raises(OptionError, match="has no worker; start one with: dask worker"),
    ):
        batch(folder, tmp_path / "out", scheduler=empty.scheduler_address)
    assert not (tmp_path / "out" / ".work").exists()


def test_workers_that_stay_away_are_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    space: dict[str, Any] = {"__name__": "__main__"}
    exec(PLUGIN, space)
    monkeypatch.setattr(process_module, "_PROGRAM", space["WORK"])
    monkeypatch.setattr(scheduler_module, "ABSENCE", 1.0)
    folder = models(tmp_path / "in", "a.onnx", "long.onnx")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0",
        silence_logs=False,
    ) as made:  # fmt: skip

        def told(standing: Standing) -> None:
            if standing.done:
                made.scale(0)

        with pytest.raises(BatchError, match=r"all workers of Dask have been gone for 1 s; start"):
            batch(folder, tmp_path / "out", scheduler=made.scheduler_address, told=told)
    assert len((tmp_path / "out" / JOURNAL).read_text().splitlines()) == 1


def _eventually(found: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if found():
            return
        time.sleep(0.1)
    raise AssertionError("not within half a minute")
