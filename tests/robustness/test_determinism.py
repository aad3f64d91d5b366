"""The same input, options, seed and threads give the same bytes, in any process."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests import fixtures_models as fm
from tests.robustness.test_faults import RUN

#: hash seed and threads of BLAS, which decide the order of sets and of sums
PROCESSES = (("0", "1"), ("1", "1"), ("4711", "1"), ("random", "1"))


def run_all(
    commands: list[list[str]], environments: list[dict[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    done = []
    for command, environment in zip(commands, environments, strict=True):
        found = subprocess.run(
            [sys.executable, "-c", RUN, *command],
            cwd=fm.ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        done.append(found)
    return done


def environments(processes: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"PYTHONHASHSEED": h, "OPENBLAS_NUM_THREADS": t} for h, t in processes]


def compress(folder: Path, model: Path, i: int, threads: str, *more: str) -> list[str]:
    return [
        "compress", str(model), str(folder / f"{i}.onnx"), "--calib", str(fm.DIGITS),
        "--samples", "200", "--threads", threads, "--seed", "3", "-q", "--target", "macs=0.5",
        "--force", *more,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("net", "threads"),
    [
        pytest.param("mlp", "2", marks=pytest.mark.full),
        *(pytest.param(*case, marks=pytest.mark.slow)
          for case in (("tiny", "1"), ("tiny", "2"), ("mlp", "1"), ("resnet", "1"),
                       ("resnet", "2"))),
    ],
)  # fmt: skip
def test_bytes_are_the_same_in_other_processes(net: str, threads: str, tmp_path: Path) -> None:
    processes = PROCESSES[:3] if threads == "1" else PROCESSES[2:]
    model = fm.digits(net)
    commands = [compress(tmp_path, model, i, threads) for i in range(len(processes))]
    if net == "tiny":  # convolutions in residual branches
        model = tmp_path / "tiny.onnx"
        onnx.save(fm.residual_net(), model)
        np.savez(tmp_path / "tiny.npz", x=fm.pictures(60))
        for command in commands:
            command[1], command[4], command[6] = str(model), str(tmp_path / "tiny.npz"), "40"
            command += ["--passes", "fold_batchnorm,svd,spatial_svd,channel_svd"]
    run_all(commands, environments(processes))
    written = [(tmp_path / f"{i}.onnx").read_bytes() for i in range(len(processes))]
    assert len(set(written)) == 1
    assert len(written[0]) < model.stat().st_size


@pytest.mark.full
def test_external_data_is_the_same_too(tmp_path: Path) -> None:
    model = fm.external(tmp_path, onnx.load(fm.digits("mlp")))
    commands = [compress(tmp_path, model, i, "1") for i in range(2)]
    run_all(commands, environments(PROCESSES[:2]))
    data = [(tmp_path / f"{i}.onnx.data").read_bytes() for i in range(2)]
    assert data[0] == data[1]
    files = [(tmp_path / f"{i}.onnx").read_bytes().replace(b"%d.onnx" % i, b"") for i in range(2)]
    assert files[0] == files[1]  # but for the name of the data


@pytest.mark.full
def test_without_data_and_with_uniform_ranks(tmp_path: Path) -> None:
    options = ("--target", "params=0.6")
    commands = [
        [a for a in compress(tmp_path, fm.digits("mlp"), i, "1", *options)
         if a not in ("--calib", str(fm.DIGITS), "--samples", "200")]
        for i in range(2)
    ]  # fmt: skip
    run_all(commands, environments(PROCESSES[:2]))
    digests = {hashlib.sha256((tmp_path / f"{i}.onnx").read_bytes()).hexdigest() for i in range(2)}
    assert len(digests) == 1


@pytest.mark.slow
def test_another_seed_draws_other_samples(tmp_path: Path) -> None:
    """The tests above could not fail if nothing were drawn at all."""
    commands = [compress(tmp_path, fm.digits("mlp"), i, "1") for i in range(2)]
    commands[1][commands[1].index("--seed") + 1] = "4"
    run_all(commands, environments((PROCESSES[0], PROCESSES[0])))
    assert (tmp_path / "0.onnx").read_bytes() != (tmp_path / "1.onnx").read_bytes()


@pytest.mark.full
def test_inspect_prints_the_same() -> None:
    command = ["inspect", str(fm.digits("vgg")), "--json"]
    printed = {d.stdout for d in run_all([command] * 2, environments(PROCESSES[:2]))}
    assert len(printed) == 1
    assert '"macs"' in printed.pop()
