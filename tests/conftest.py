"""Profiles of Hypothesis, compressed models made once for several test files, and counts."""

from __future__ import annotations

import os

# before numpy is imported: matrices here are small, and BLAS threads that wait for each other on
# a busy machine make them ten times slower
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import settings

from onnx_lowrank.engine.api import Result
from tests import fixtures_models as fm

Compressed = Callable[..., Result]
Count = Callable[[str, str], None]

_COUNTED = pytest.StashKey[dict[str, Counter[str]]]()

# by default the same examples at each run; with --hypothesis-profile fresh, others at each run
settings.register_profile("repeated", deadline=None, derandomize=True)
settings.register_profile("fresh", deadline=None, database=None, print_blob=True)
settings.load_profile("repeated")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of fresh examples here, once for all workers, so that it can be shown."""
    if config.option.hypothesis_profile == "fresh" and config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(secrets.randbelow(2**32))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Show the seed that repeats the run's fresh examples."""
    seed = config.option.hypothesis_seed
    return None if seed is None else f"repeat these examples with --hypothesis-seed={seed}"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def compressed() -> Compressed:
    """``compressed(net, **options)``: a digits net compressed without a clock, and remembered."""
    made: dict[str, Result] = {}

    def make(net: str, **options: Any) -> Result:
        key = f"{net} {sorted(options.items())}"
        if key not in made:
            made[key] = fm.quick_compress(fm.digits(net), **{"calib": fm.DIGITS, **options})
        return made[key]

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small classifier ``tiny.onnx`` and data for it, ``data.npz``."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(fm.classifier(), folder / "tiny.onnx")
    x, labels = fm.classified(400)
    parts: dict[str, Any] = {"x": x[:300], "test.x": x[300:], "test.labels": labels[300:]}
    np.savez(folder / "data.npz", **parts)
    return folder


@pytest.fixture(scope="session")
def count(request: pytest.FixtureRequest) -> Count:
    """``count(what, verdict)``: one more in the summary; a count of none would prove nothing."""
    tallies = request.config.stash.setdefault(_COUNTED, {})

    def add(what: str, verdict: str) -> None:
        tallies.setdefault(what, Counter())[verdict] += 1

    return add


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: what it counted joins the rest."""
    tallies = node.config.stash.setdefault(_COUNTED, {})
    for what, verdicts in getattr(node, "workeroutput", {}).get("counted", {}).items():
        tallies.setdefault(what, Counter()).update(verdicts)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        tallies = session.config.stash.get(_COUNTED, {})
        session.config.workeroutput["counted"] = {k: dict(v) for k, v in tallies.items()}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for what, tally in sorted(config.stash.get(_COUNTED, {}).items()):
        verdicts = ", ".join(f"{number} {verdict}" for verdict, number in tally.most_common())
        terminalreporter.write_line(f"{what}: {tally.total()} = {verdicts}")
