"""The example of a third-party pass: installed beside the engine, found by it, and right."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.passes import Svd
from tests.support import (
    assert_faithful,
    assert_identity_at_full_rank,
    conv_example,
    geometries,
    only_layer,
    quick,
    random_moments,
)

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "onnx-lowrank-interpolative"


def module() -> ModuleType:
    path = EXAMPLE / "onnx_lowrank_interpolative.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = found
    spec.loader.exec_module(found)
    return found


Interpolative: Any = module().Interpolative


def by_pip(target: Path, source: Path) -> None:
    """Without a network: what builds the package must be here already."""
    if not builds_offline():
        pytest.skip("needs setuptools 77 or newer in this environment")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", "-q", *options, "--target"]
    subprocess.run([*command, str(target), str(source)], check=True, timeout=120)


def by_hand(target: Path, source: Path) -> None:
    """The files that pip would lay down: the module and its entry point."""
    project = (source / "pyproject.toml").read_text(encoding="utf-8")
    table = re.search(r'^\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = ".*"\n)+)', project, re.M)
    assert table is not None
    info = target / "onnx_lowrank_interpolative-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnx-lowrank-interpolative\nVersion: 0.1.0\n"
    )
    (info / "entry_points.txt").write_text(f"[{table[1]}]\n{table[2].replace(chr(34), '')}")
    shutil.copy(source / "onnx_lowrank_interpolative.py", target)


def builds_offline() -> bool:
    try:
        return int(version("setuptools").partition(".")[0]) >= 77
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize(
    "install",
    [pytest.param(by_pip, marks=pytest.mark.full), pytest.param(by_hand, marks=pytest.mark.slow)],
)
def test_installed_it_is_a_pass_like_others(tmp_path: Path, install: Any) -> None:
    target, source = tmp_path / "site", tmp_path / "source"
    shutil.copytree(EXAMPLE, source)  # a build leaves files behind
    install(target, source)

    def run(*arguments: str) -> str:
        path = os.pathsep.join([str(target), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-m", "onnx_lowrank", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "interpolative: some outputs as they are" in run("passes")
    assert "metric = 'covariance'" in run("explain", "interpolative")
    models = ROOT / "models"
    report = tmp_path / "report.json"
    run(
        "compress", str(models / "digits_mlp.onnx"), str(tmp_path / "small.onnx"), "--calib",
        str(models / "digits.npz"), "--target", "macs=0.5", "--passes", "interpolative", "--force",
        "--report", str(report),
    )  # fmt: skip
    written = json.loads(report.read_text(encoding="utf-8"))
    assert "interpolative" in {layer["method"] for layer in written["layers"]}
    assert (tmp_path / "small.onnx").stat().st_size < 0.6 * (
        models / "digits_mlp.onnx"
    ).stat().st_size


@pytest.mark.full
def test_without_the_package_the_pass_is_unknown() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onnx_lowrank", "explain", "interpolative"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "no pass named 'interpolative'" in done.stderr


@quick(15)
@given(geometries(), st.integers(0, 99))
def test_full_rank(geometry: ConvGeometry, seed: int) -> None:
    proto, feed = conv_example(geometry, seed)
    assert_identity_at_full_rank(Interpolative(), proto, feed, seed)


@quick(15)
@given(geometries(axes=(1, 2)), st.booleans(), st.integers(0, 99))
def test_errors_are_true(geometry: ConvGeometry, data: bool, seed: int) -> None:
    layer = only_layer(conv_example(geometry, seed)[0])
    moments = random_moments(layer, seed) if data else Moments()
    for form in Interpolative().propose(layer, moments):
        assert_faithful(form, layer, moments)


@quick(15)
@given(st.integers(0, 99))
def test_between_the_best_basis_and_none(seed: int) -> None:
    """No basis beats principal components; kept outputs are exact, the others lose."""
    layer = only_layer(conv_example(ConvGeometry.pointwise(2), seed)[0])
    moments = random_moments(layer, seed)
    (best,), (form,) = (p.propose(layer, moments) for p in (Svd(), Interpolative()))
    for rank in range(1, best.max_rank):
        chain = form.cut(rank)
        weight, found = (
            layer.stage.matrices[0],
            chain.dense(1).reshape(layer.stage.matrices[0].shape),
        )
        kept = [
            n for n in range(len(weight)) if np.allclose(weight[n], found[n], rtol=0, atol=1e-9)
        ]
        assert len(kept) >= rank
        assert best.error(rank) - 1e-12 <= form.error(rank) < 1
