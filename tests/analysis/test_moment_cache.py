"""A collection that is interrupted and goes on ends in the bits of one that was not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lowrank.analysis import preparation, reader
from onnx_lowrank.analysis.collect import collect_moments
from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.moment_store import MomentStore
from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.progress import Progress
from tests import fixtures_models as fm

NET = fm.residual_net()
DATA = fm.dataset(NET, fm.pictures(60))
WIDE, NARROW = 10**9, 300_000


class Interrupting(Progress):
    """Stops like a user after so many calls of one task."""

    def __init__(self, calls: int, task: str = "calibrate") -> None:
        self.left, self.name = calls, task

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(done: int) -> None:
            if name == self.name and done:
                self.left -= 1
                if not self.left:
                    raise KeyboardInterrupt

        yield advance


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "LARGEST_BATCH", 8)
    monkeypatch.setattr(reader, "ENOUGH_ROWS", 1000)  # so that positions are drawn


def at_once(folder: Path, about: dict[str, Any], **options: Any) -> MomentCache:
    """A cache that writes whatever it is given."""
    return MomentCache(folder, about, worth=0.0, share=0.0, **options)


def collected(
    cache: MomentCache | None, memory: int = WIDE, progress: Progress | None = None
) -> MomentStore:
    graph = Graph(load(NET))
    return collect_moments(
        graph, find_layers(graph)[0], DATA, tensor_shapes(load(NET), {"x": (1, 3, 7, 7)}),
        Streaming(fm.ONE_THREAD, 3, progress or Progress(), memory), cache=cache,
    )  # fmt: skip


def equal(one: MomentStore, two: MomentStore) -> None:
    assert list(one) == list(two)
    assert one.totals == two.totals
    for name in one:
        a, b = one[name], two[name]
        assert a.count == b.count
        np.testing.assert_array_equal(a.mean, b.mean)
        np.testing.assert_array_equal(a.covariance, b.covariance)


@pytest.mark.parametrize("memory", [WIDE, NARROW], ids=["at once", "in groups"])
@pytest.mark.parametrize("calls", [1, 5, 8])
def test_it_goes_on_with_the_same_bits(tmp_path: Path, memory: int, calls: int) -> None:
    whole = collected(None, memory)
    with pytest.raises(KeyboardInterrupt):
        collected(at_once(tmp_path, {}), memory, Interrupting(calls))
    cache = at_once(tmp_path, {})
    equal(collected(cache, memory), whole)
    # the batch that was interrupted is read again, those before are not
    assert cache.resumed == 8 * (calls - 1) if memory == WIDE else cache.resumed < 60 * calls
    assert bool(cache.resumed) == (calls > 1)
    # and once more, from what is there whole
    again = at_once(tmp_path, {})
    equal(collected(again, memory, Interrupting(10**9)), whole)
    assert again.resumed % len(DATA) == 0
    assert again.resumed > 0
    again.clear()
    assert list(tmp_path.iterdir()) == []


def test_other_origins_are_apart(tmp_path: Path) -> None:
    collected(at_once(tmp_path, {"seed": 1}))
    other = at_once(tmp_path, {"seed": 2})
    assert other.read(0) is None
    assert at_once(tmp_path, {"seed": 1}).read(0) is not None


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "other sums", "objects"])
def test_what_cannot_be_read_is_computed_again(tmp_path: Path, damage: str) -> None:
    first = at_once(tmp_path, {})
    whole = collected(first)
    file = first.path / "0.npz"
    content = file.read_bytes()
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        file.write_bytes(bytes(1000))
    elif damage == "other sums":
        arrays = first.read(0)
        assert arrays is not None
        arrays["inputs.1.scatter"] = np.zeros((1, 2, 2))
        np.savez(file, **arrays)  # type: ignore[arg-type]
    else:
        state: Any = {"done": np.array([{}], dtype=object)}
        np.savez(file, **state)
    second = at_once(tmp_path, {})
    equal(collected(second), whole)
    assert second.resumed == 0


def test_short_work_is_not_written(tmp_path: Path) -> None:
    now = [0.0]
    cache = MomentCache(tmp_path, {}, lambda: now[0], worth=5.0, share=20.0)

    def state() -> dict[str, Any]:
        now[0] += 1.0  # the writing takes a second
        return {"x": np.array(now[0])}

    written = []
    for second in range(60):
        now[0] = max(now[0], second)
        cache.write(0, state)
        found = MomentCache(tmp_path, {}).read(0)
        written.append(None if found is None else float(found["x"]))
    # at 5, and then when twenty times its writing has gone by
    assert sorted({w for w in written if w is not None}) == [6.0, 27.0, 48.0]
    assert written[4] is None


def test_what_is_old_or_too_much_goes(tmp_path: Path) -> None:
    old, new, mine = (at_once(tmp_path, {"number": i}) for i in range(3))
    stranger = tmp_path / "letters"
    stranger.mkdir()
    for age, cache in ((4 * 86400, old), (60, new)):
        cache.write(0, lambda: {"x": np.zeros(1000)})
        stamp = os.stat(cache.path / "0.npz").st_mtime - age
        os.utime(cache.path / "0.npz", (stamp, stamp))
    mine.write(0, lambda: {"x": np.zeros(1000)})
    assert [c.path.exists() for c in (old, new, mine)] == [False, True, True]
    mine = at_once(tmp_path, {"number": 2}, largest=12_000)
    mine.write(0, lambda: {"x": np.zeros(1000)})
    assert [c.path.exists() for c in (old, new, mine)] == [False, False, True]
    assert stranger.exists()


def test_no_room_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = at_once(tmp_path / "file", {})
    equal(collected(cache), collected(None))


@pytest.mark.full
def test_an_interrupted_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "MomentCache", at_once)
    data: dict[str, Any] = {
        "calib": fm.DIGITS, "samples": 100, "passes": "fold_batchnorm,spatial_svd",
        "target": "macs=0.8", "threads": 1, "force": True,
    }  # fmt: skip
    net, whole = fm.digits("vgg"), fm.quick_compress(fm.digits("vgg"), **data)
    for task in ("calibrate", "refit"):
        with pytest.raises(KeyboardInterrupt):
            fm.quick_compress(net, **data, cache=tmp_path, progress=Interrupting(2, task))
        assert list((tmp_path / "moments").iterdir())
    result = fm.quick_compress(net, **data, cache=tmp_path)
    assert any("interrupted" in note for note in result.report.said)
    assert onnx.load_from_string(result.model.SerializeToString()) == whole.model
    assert list((tmp_path / "moments").iterdir()) == []
