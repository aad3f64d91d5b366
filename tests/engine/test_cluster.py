"""One model on a Dask cluster: the same bytes as on one machine, also where a worker is lost."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from onnx_lowrank.engine.api import apply, plan
from onnx_lowrank.errors import BatchError, DataError, OptionError
from onnx_lowrank.linalg.blas_threads import limited_blas
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime import cluster as module
from onnx_lowrank.runtime import scheduler
from onnx_lowrank.runtime.cluster import Cluster
from tests import fixtures_models as fm
from tests.support import DASK

pytestmark = DASK

#: a pass of another package, which is installed here alone
PLUGIN = """
from onnx_lowrank.passes.svd import Svd

class Mine(Svd):
    pass
"""

#: of __main__, so that they travel by value: workers cannot import this file
CALLS = """
import os, signal, time
from onnx_lowrank.errors import DataError

def added(shared, argument):
    time.sleep(0.02)
    return os.getpid(), shared[0] + argument

def threads_of(shared, argument):
    from onnx_lowrank.linalg.blas_threads import blas_threads
    return blas_threads()

def dying(shared, argument):
    flag, times = shared
    deaths = len(os.listdir(flag))
    if argument == 3 and deaths < times:
        open(os.path.join(flag, str(deaths)), "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return 10 * argument

def refusing(shared, argument):
    raise DataError("no good data; give better")

def failing(shared, argument):
    raise FileNotFoundError("weights.bin is not here")
"""


@pytest.fixture(scope="module")
def calls() -> dict[str, Callable[[Any, Any], Any]]:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(CALLS, space)
    return space


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import dask
    import distributed

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0",
            silence_logs=False,
        ) as made,
    ):  # fmt: skip
        yield made.scheduler_address


# calls


def test_answers_come_in_the_order_of_the_arguments(address: str, calls: Any) -> None:
    found = list(Cluster(address).answers(calls["added"], [100], range(30)))
    assert [value for _, value in found] == [100 + i for i in range(30)]
    assert len({pid for pid, _ in found}) == 2
    assert list(Cluster(address).answers(calls["added"], [100], [])) == []


def test_linear_algebra_has_the_same_threads_there(address: str, calls: Any) -> None:
    for threads in (1, 2):
        with limited_blas(threads):
            found = list(Cluster(address).answers(calls["threads_of"], None, range(4)))
        assert set(found) == {threads}


def test_arguments_are_taken_as_there_is_room(address: str, calls: Any) -> None:
    taken = []

    def arguments() -> Iterator[int]:
        for i in range(1000):
            taken.append(i)
            yield i

    with closing(Cluster(address).answers(calls["added"], [0], arguments())) as answers:
        assert next(answers)[1] == 0
    assert len(taken) <= 8


def test_a_worker_that_is_lost_loses_nothing(address: str, calls: Any, tmp_path: Path) -> None:
    found = list(Cluster(address).answers(calls["dying"], (str(tmp_path), 1), range(8)))
    assert found == [10 * i for i in range(8)]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_goes_wrong_is_worded(
    address: str, calls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(address)
    with pytest.raises(BatchError, match=r"every worker of Dask that began a call was lost"):
        list(cluster.answers(calls["dying"], (str(tmp_path), 99), range(8)))
    with pytest.raises(DataError, match=r"^no good data; give better$"):
        list(cluster.answers(calls["refusing"], None, [1]))
    with pytest.raises(
        BatchError, match=r"a worker of Dask failed .FileNotFoundError: weights.bin"
    ):
        list(cluster.answers(calls["failing"], None, [1]))
    with pytest.raises(FileNotFoundError):  # of what is read here
        list(cluster.answers(calls["added"], [0], map(os.stat, ["absent"])))
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(OptionError, match=r"has onnx-lowrank .*, and this is 0.0.1; install the"):
        list(cluster.answers(calls["added"], [0], [1]))


def test_workers_of_another_version_are_refused_first(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cluster(address).check()
    monkeypatch.setattr(module, "__version__", "0.0.1")
    with pytest.raises(OptionError, match=r"a worker of Dask .tcp.* has onnx-lowrank .* is 0.0.1"):
        fm.quick_compress(fm.digits("mlp"), calib=fm.DIGITS, scheduler=address)


def test_nobody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 1)
    command = ["compress", str(fm.digits("mlp")), str(tmp_path / "small.onnx")]
    command += ["--calib", str(fm.DIGITS), "--scheduler", "127.0.0.1:9"]
    fm.refused(command, capsys, 2, "no Dask scheduler answers at 127.0.0.1:9", "dask scheduler")


@contextmanager
def begun(calls: Any) -> Iterator[tuple[Any, Iterator[Any]]]:
    """A cluster of one worker in this process, and answers of which the first was taken."""
    import distributed

    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=":0", silence_logs=False
    ) as made:
        answers = Cluster(made.scheduler_address).answers(calls["added"], [0], range(1000))
        next(answers)
        yield made, answers


def test_a_scheduler_that_goes_is_said_in_one_line(
    calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PATIENCE", 5)
    with begun(calls) as (made, answers):
        made.close()
        with pytest.raises(BatchError, match=r"the scheduler at .* cannot be reached any more"):
            list(answers)


def test_workers_that_stay_away_are_not_waited_for_without_end(
    calls: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "ABSENCE", 1.0)
    with begun(calls) as (made, answers):
        made.scale(0)
        with pytest.raises(BatchError, match=r"all workers of Dask have been gone for 1 s; start"):
            list(answers)


def test_an_answer_that_went_with_its_worker_is_not_waited_for_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a worker goes between making an answer and sending it."""
    from distributed import TimeoutError as WaitedTooLong

    class Gone:
        status = "finished"

        def result(self, timeout: float) -> None:
            raise WaitedTooLong

    class Nobody:
        def nthreads(self) -> dict[str, int]:
            return {}

    monkeypatch.setattr(scheduler, "ABSENCE", 0.01)
    attendance = scheduler.Attendance(Nobody())
    with pytest.raises(BatchError, match="all workers of Dask have been gone"):
        scheduler.result_of(Gone(), attendance)


# models


@pytest.mark.parametrize("net", ["mlp", "vgg", "lstm"])
def test_one_model_has_the_same_bytes(address: str, net: str) -> None:
    options: dict[str, Any] = {
        "calib": fm.DIGITS, "samples": 100, "force": True, "target": "macs=0.8",
        "passes": "fold_batchnorm,spatial_svd,svd,recurrent_svd",
    }  # fmt: skip
    alone = fm.quick_compress(fm.digits(net), **options)
    shared = fm.quick_compress(fm.digits(net), scheduler=address, **options)
    assert shared.model.SerializeToString() == alone.model.SerializeToString()
    assert shared.plan == alone.plan


def test_candidates_come_from_workers_and_progress_is_shown(address: str) -> None:
    told: dict[str, list[int]] = {}

    class Told(Progress):
        @contextmanager
        def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
            told.setdefault(name, []).append(total)
            yield lambda done: told[name].append(-done)

    options: dict[str, Any] = {"calib": fm.DIGITS, "samples": 200, "passes": "svd"}
    alone = plan(fm.digits("mlp"), **options, target="macs=0.5", threads=1, cache="")
    shared = plan(
        fm.digits("mlp"), **options, target="macs=0.5", threads=1, cache="", scheduler=address,
        progress=Told(),
    )  # fmt: skip
    assert shared == alone
    assert not any(sum(told[name]) for name in ("calibrate", "plan"))


def test_arrays_in_memory_are_sent_along(address: str) -> None:
    proto, data = fm.residual_net(16), {"x": fm.pictures(40)}
    alone = fm.quick_compress(proto, calib=data, passes="svd,spatial_svd", force=True)
    shared = fm.quick_compress(
        proto, calib=data, passes="svd,spatial_svd", force=True, scheduler=address
    )
    assert shared.model == alone.model
    assert apply(
        proto, alone.plan, calib=data, threads=1, cache="", scheduler=address, force=True
    ).model == alone.model  # fmt: skip


def test_weights_in_files_are_seen_there_or_the_error_says_so(address: str, tmp_path: Path) -> None:
    data = {"x": fm.pictures(40)}
    path = fm.external(tmp_path, fm.residual_net(16))
    alone = fm.quick_compress(path, calib=data, passes="spatial_svd", force=True)
    assert fm.quick_compress(
        path, calib=data, passes="spatial_svd", force=True, scheduler=address
    ).model == alone.model  # fmt: skip


def test_a_pass_that_workers_cannot_import_is_said(address: str) -> None:
    space: dict[str, Any] = {"__name__": "plugin_that_is_not_there"}
    exec(PLUGIN, space)
    module_of = types.ModuleType("plugin_that_is_not_there")
    vars(module_of).update(space)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "plugin_that_is_not_there", module_of)
        with pytest.raises(BatchError, match=r"plugin_that_is_not_there.*plug-ins included"):
            fm.quick_compress(
                fm.digits("mlp"), calib=fm.DIGITS, samples=40, passes=[space["Mine"]()],
                scheduler=address,
            )  # fmt: skip
