"""Whatever ends a run, its output is absent or whole, and its input as it was."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank.errors import ModelError
from onnx_lowrank.modelfile import atomic_files as files
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
from tests import fixtures_models as fm
from tests.conftest import Count

Capture = pytest.CaptureFixture[str]

#: what a run does in another process: the command without its clock, which takes two seconds
RUN = """
import os, resource, sys
if room := os.environ.get("ROOM"):  # a limit on the size of files stands for a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
from tests import fixtures_models as fm
sys.exit(fm.command(sys.argv[1:]))
"""


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        cwd=fm.ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def compression(folder: Path, target: str = "macs=0.5", out: str = "out.onnx") -> list[str]:
    """Of a net with its weights in another file, so that two files must agree."""
    path = folder / "big.onnx"
    if not path.exists():
        fm.external(folder, onnx.load(fm.digits("mlp")))
    return [
        "compress", str(path), str(folder / out), "--calib", str(fm.DIGITS),
        "--target", target, "--threads", "1", "--samples", "200", "--effort", "quick", "-q",
    ]  # fmt: skip


def digests(folder: Path, *names: str) -> dict[str, str]:
    return {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names}


def left_over(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".tmp"))


def whole(path: Path) -> None:
    """The model loads with all its data, and runs."""
    model = load(path)
    with np.load(fm.DIGITS) as data:
        name = model.proto.graph.input[0].name
        fm.run(path, {name: data[name][:2]})


INPUTS = ("big.onnx", "weights.bin")


@pytest.mark.parametrize(
    "times",
    [pytest.param(2, marks=pytest.mark.full), pytest.param(100, marks=pytest.mark.slow)],
)
def test_kill_at_random(times: int, tmp_path: Path, count: Count) -> None:
    folder, arguments = tmp_path, compression(tmp_path)
    before = digests(folder, *INPUTS)
    begin = time.perf_counter()
    with start(*arguments) as process:
        assert process.wait() == 0, process.stderr
    took = time.perf_counter() - begin
    results = digests(folder, "out.onnx", "out.onnx.data")
    random = np.random.default_rng(0)
    turn = killed = 0
    while killed < times:
        turn += 1
        assert turn < 10 * times, "runs end before they can be killed"
        if turn % 2:  # every other time there is nothing to replace
            (folder / "out.onnx").unlink(missing_ok=True)
            (folder / "out.onnx.data").unlink(missing_ok=True)
        with start(*arguments) as process:
            # importing takes half the time
            time.sleep(float(random.uniform(0.4, 1.1)) * took)
            finished = process.poll() is not None
            process.kill()
        killed += not finished
        took *= 0.8 if finished else 1.05  # the machine's other work comes and goes
        assert digests(folder, *INPUTS) == before
        if (folder / "out.onnx").exists():
            assert digests(folder, "out.onnx", "out.onnx.data") == results
        count("kill -9", "finished before" if finished else "killed")
    with start(*arguments) as process:
        assert process.wait() == 0, process.stderr
    assert digests(folder, "out.onnx", "out.onnx.data") == results
    assert left_over(folder) == []
    whole(folder / "out.onnx")


#: writes a model with external data over one of other weights, and is killed at the n-th call
KILLED_WHILE_WRITING = """
import os, signal, sys
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
calls = 0
def deadly(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("fsync", "replace", "unlink", "open", "listdir"):
    setattr(os, name, deadly(getattr(os, name)))
source = load(sys.argv[1])
save(source, sys.argv[2], source=source)
"""


def outputs(path: Path) -> fm.AnyArray:
    return fm.run(path, {"x": fm.classified(4)[0]})["y"]


@pytest.mark.full
def test_kill_between_the_two_files_of_a_model(tmp_path: Path, count: Count) -> None:
    """At each call that changes a name: no output, or one with the weights that belong to it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "old").mkdir()
    source = fm.external(tmp_path / "in", fm.classifier())
    old = fm.external(tmp_path / "old", fm.classifier(decay=0.9))
    out = tmp_path / "out.onnx"
    valid = [outputs(source), outputs(old)]
    for call in range(1, 30):
        model = load(old)
        save(model, out, source=model)
        command = [sys.executable, "-c", KILLED_WHILE_WRITING, str(source), str(out), str(call)]
        code = subprocess.run(command, cwd=fm.ROOT, check=False).returncode
        if out.exists():
            found = outputs(out)
            assert any(np.array_equal(found, v) for v in valid), call
        if code == 0:
            break
        assert code == -signal.SIGKILL
        count("kill -9 while writing", "output absent" if not out.exists() else "output whole")
    else:
        pytest.fail("it never came to its end")
    assert call > 5
    assert np.array_equal(outputs(out), valid[0])
    assert left_over(tmp_path) == []


def test_files_that_others_are_writing_are_not_swept(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "out") as first:
        first.write(b"first")
        with atomic_write(tmp_path / "out") as second:
            second.write(b"second")
            assert len(left_over(tmp_path)) == 2
        assert (tmp_path / "out").read_bytes() == b"second"
    assert (tmp_path / "out").read_bytes() == b"first"
    assert left_over(tmp_path) == []


def test_only_our_left_overs_are_swept(tmp_path: Path) -> None:
    ours = ".out.0123456789ab.tmp"
    others = (".other.0123456789ab.tmp", ".out.tmp", ".out.0123456789ab.tmp.txt", "out.tmp")
    for name in (ours, *others):
        (tmp_path / name).write_bytes(b"")
    with atomic_write(tmp_path / "out") as file:
        file.write(b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"out", *others}


# no room, no right


SAVE = """
import resource, sys
from onnx_lowrank.errors import LowRankError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
source, room = load(sys.argv[1]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
try:
    save(source, sys.argv[2], source=source)
except LowRankError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("room", [0, 1000, 20_000])
def test_a_full_disk(room: int, tmp_path: Path) -> None:
    arguments = compression(tmp_path)
    before = digests(tmp_path, *INPUTS)

    assert load(arguments[1]).bytes > 20_000
    done = subprocess.run(
        [sys.executable, "-c", SAVE, *arguments[1:3], str(room)],
        cwd=fm.ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "cannot be written (File too large); make room, or name another output" in done.stdout
    assert digests(tmp_path, *INPUTS) == before
    assert {p.name for p in tmp_path.iterdir()} == set(INPUTS)


@pytest.mark.full
def test_a_full_disk_while_samples_are_copied(tmp_path: Path) -> None:
    arguments = compression(tmp_path)

    with start(*arguments, ROOM="1000") as process:
        assert process.wait() == 4
        assert process.stderr is not None
        line = process.stderr.read()
    assert "the samples do not fit into" in line
    assert line.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == set(INPUTS)


def refused(folder: Path, capsys: Capture, out: str, message: str) -> None:
    arguments = compression(folder, out=out)
    before = digests(folder, *INPUTS)
    names = {p.name for p in folder.iterdir()}
    fm.refused(arguments, capsys, 2, message)
    assert digests(folder, *INPUTS) == before
    assert {p.name for p in folder.iterdir()} == names


def test_outputs_that_are_refused_before_the_work(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, capsys, "folder", "is a folder; name a file in it")
    refused(tmp_path, capsys, "big.onnx", "is the input itself; name another output")
    refused(tmp_path, capsys, "weights.bin", "holds the input's weights; name another output")
    refused(tmp_path, capsys, "pipe", "is not a regular file; name another output")
    refused(tmp_path, capsys, "no/out.onnx", "does not exist; create it first")
    refused(tmp_path, capsys, "a" * 5000, "cannot be written")
    refused(tmp_path, capsys, "/dev/null", "is not a regular file; name another output")
    assert Path("/dev/null").is_char_device()


def test_outputs_do_not_replace_the_data_or_each_other(tmp_path: Path, capsys: Capture) -> None:
    arguments = compression(tmp_path, out="data.npz")
    (tmp_path / "data.npz").write_bytes(fm.DIGITS.read_bytes())
    before = digests(tmp_path, "data.npz")
    arguments[4] = str(tmp_path / "data.npz")
    fm.refused(arguments, capsys, 2, "data.npz is also given as another file of this command")
    arguments[2] = str(tmp_path / "out.onnx")
    for report in ("data.npz", "out.onnx"):
        argv = [*arguments, "--report", str(tmp_path / report)]
        fm.refused(argv, capsys, 2, f"{report} is also given as another file of this command")
    assert digests(tmp_path, "data.npz") == before
    assert {p.name for p in tmp_path.iterdir()} == {*INPUTS, "data.npz"}


def test_data_file_of_the_output_is_the_inputs(tmp_path: Path, capsys: Capture) -> None:
    compression(tmp_path)
    (tmp_path / "o.onnx.data").hardlink_to(tmp_path / "weights.bin")
    refused(tmp_path, capsys, "o.onnx", "o.onnx.data holds the input's weights; name another")


def test_a_read_only_folder(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:  # may write everywhere, so ask as if it were not
        access = os.access

        def asked(path: object, mode: int) -> bool:
            return not (mode & os.W_OK and str(path).endswith("locked")) and access(path, mode)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "access", asked)
    refused(tmp_path, capsys, "locked/out.onnx", "is read-only; name another folder")


def test_permission_denied(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    with (
        pytest.raises(ModelError, match=r"cannot be written \(Permission denied\)"),
        atomic_write(tmp_path / "locked" / "out"),
    ):
        pass


def test_permission_lost_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with (
        pytest.raises(ModelError, match=r"out: cannot be written \(Permission denied\); make room"),
        atomic_write(tmp_path / "out") as file,
    ):
        file.write(b"whole")
    assert list(tmp_path.iterdir()) == []


# two at once


@pytest.mark.full
def test_two_runs_to_one_output(tmp_path: Path) -> None:
    """The last one wins with all of its files, whichever that is."""
    targets = ("macs=0.5", "macs=0.7")
    expected = []
    for target in targets:
        with start(*compression(tmp_path, target)) as process:
            assert process.wait() == 0
        expected.append(digests(tmp_path, "out.onnx", "out.onnx.data"))
    assert expected[0]["out.onnx.data"] != expected[1]["out.onnx.data"]
    both = [start(*compression(tmp_path, target)) for target in targets]
    for process in both:
        with process:
            assert process.wait() == 0
    assert digests(tmp_path, "out.onnx", "out.onnx.data") in expected
    assert left_over(tmp_path) == []


#: writes two files that name each other, over and over
RACE = """
import sys
from pathlib import Path
from onnx_lowrank.modelfile.atomic_files import atomic_writes
folder, letter = Path(sys.argv[1]), sys.argv[2].encode()
for turn in range(60):
    with atomic_writes(folder / "o.data", folder / "o") as (data, file):
        data.write(letter * 1000 + b"%d" % turn)
        file.write(letter * 1000 + b"%d" % turn)
"""


def test_pairs_of_files_are_never_mixed(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), letter], cwd=fm.ROOT)
        for letter in "abc"
    ]
    for racer in racers:
        assert racer.wait() == 0
    assert (tmp_path / "o").read_bytes() == (tmp_path / "o.data").read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"o", "o.data"}


def test_a_file_taken_for_a_left_over_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run may sweep between the creation of a file and its lock."""
    taken = []
    lock = files._lock

    def late(file: object) -> bool:
        if not taken:
            taken.append(name := Path(file.name))  # type: ignore[attr-defined]
            name.unlink()
        return lock(file)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "_lock", late)
    with atomic_write(tmp_path / "out") as file:
        file.write(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert len(taken) == 1
