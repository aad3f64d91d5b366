from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from onnx_lowrank.cli import commands as cli_commands
from onnx_lowrank.errors import ModelError
from onnx_lowrank.judge.options import KeepOptions
from tests import fixtures_models as fm

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def compress(tiny: Path, tmp_path: Path) -> list[str]:
    return ["compress", str(tiny / "tiny.onnx"), str(tmp_path / "out.onnx"),
            "--calib", str(tiny / "data.npz"), "--threads", "1"]  # fmt: skip


@pytest.fixture
def sweep(tiny: Path) -> list[str]:
    return ["sweep", str(tiny / "tiny.onnx"), "--calib", str(tiny / "data.npz"),
            "--threads", "1"]  # fmt: skip


@pytest.fixture
def own(tmp_path: Path) -> str:
    file = tmp_path / "own.py"
    file.write_text(
        "def score(outputs, labels):\n    return float((outputs['y'].argmax(1) == labels).mean())\n"
    )
    return f"{file}:score"


def caught(name: str, argv: list[str], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library is told."""
    got: dict[str, Any] = {}

    def fake(_: Any, **options: Any) -> Any:
        got.update(options)
        raise ModelError("enough")

    patch.setattr(cli_commands, name, fake)
    assert fm.command(argv) == ModelError.exit_code
    return got


# the smallest that keeps


@pytest.mark.parametrize(
    ("more", "name", "value"),
    [
        (["--max-drop", "1%"], "max_drop", 0.01),
        (["--max-drop", "0.01"], "max_drop", 0.01),
        (["--max-drop", "0"], "max_drop", 0.0),
        (["--min-agreement", "99%"], "min_agreement", 0.99),
        (["--min-agreement", "0.5"], "min_agreement", 0.5),
        (["--min-snr", "30dB"], "min_snr", 30.0),
        (["--min-snr", "30 db"], "min_snr", 30.0),
        (["--min-snr", "27.5"], "min_snr", 27.5),
    ],
)
def test_requirements_reach_the_library(
    more: list[str], name: str, value: float, compress: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    got = caught("compress", [*compress, *more], monkeypatch)
    bounds = {"max_drop", "min_agreement", "min_snr", "metric"}
    given = {k: v for k, v in got.items() if k in bounds}
    assert set(given) == {name}
    requirement = KeepOptions(**given).requirement()
    assert requirement is not None
    assert requirement.bound == value


def test_the_metric_reaches_the_library(
    compress: list[str], own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--max-drop", "2", "--metric", own, "--target", "size=0.5", "--target", "macs=0.5"]
    got = caught("compress", [*compress, *more], monkeypatch)
    requirement = KeepOptions(got["max_drop"], metric=got["metric"]).requirement()
    assert requirement is not None
    assert requirement.bound == 2.0
    assert got["metric"].__name__ == "score"
    assert got["target"] == ["size=0.5", "macs=0.5"]


def test_search(compress: list[str], own: str, tmp_path: Path, capsys: Capture) -> None:
    for more in (["--max-drop", "2%"], ["--max-drop", "2%", "--metric", own]):
        assert fm.command([*compress, *more, "--target", "params", "--target", "macs=0.8"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        said = " ".join(out.split())
        assert "note: largest " in said
        assert "(0.02)" in said or "0.02, in units of the metric" in said
        assert "is the least with a drop of" in said
        assert re.search(r"params=0\.\d+ macs=0\.8 is the least", said)
        assert "held back to confirm" in said
        assert (tmp_path / "out.onnx").is_file()


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--max-drop", "one"], 2, "--max-drop 'one' is no fraction; write 1% or 0.01"),
        (["--max-drop", "5"], 2, "--max-drop '5' without a sign would mean 500 %; write 5% or 0."),
        (["--max-drop", "1"], 2, "write 1% or 0.01"),
        (["--max-drop=-1%"], 2, "--max-drop '-1%' is negative"),
        (["--max-drop", "nan"], 2, "--max-drop 'nan' is no fraction"),
        (["--max-drop", "100%"], 2, "max_drop=1 would allow a loss of 100 %"),
        (["--max-drop", "101%"], 2, "'101%' is more than the whole"),
        (["--min-agreement", "1"], 2, "--min-agreement '1' without a sign would mean 100 %"),
        (["--min-agreement", "0"], 2, "min_agreement=0: give a fraction above 0"),
        (["--min-snr", "nan"], 2, "min_snr=nan"),
        (["--min-agreement", "all"], 2, "--min-agreement 'all' is no fraction"),
        (["--min-agreement", "99"], 2, "--min-agreement '99' without a sign"),
        (["--min-snr", "30%"], 2, "--min-snr '30%'; write 30dB or 30"),
        (["--max-drop", "1%", "--min-snr", "30"], 2, "max_drop and min_snr at once"),
        (["--metric", "own.txt", "--max-drop", "1"], 2, "--metric 'own.txt'; write file.py:fun"),
        (["--metric", "no.py:f", "--max-drop", "1"], 4, "no.py: no such file"),
        (["--metric", f"{__file__}:absent", "--max-drop", "1"], 4, "no function 'absent'"),
        (["--metric", f"{__file__}:caught"], 2, "a metric needs max_drop too"),
        (["--max-drop", "1%", "--ranks", "evbmf"], 2, "evbmf cannot be combined with a search"),
        (
            ["--max-drop", "1%", "--target", "macs=0.5"],
            2,
            "target macs=0.5 leaves nothing to search for",
        ),
        (["--max-drop", "1%", "--target", "macs="], 2, "write macs=R"),
        (["--min-snr", "200dB"], 5, "nothing smaller keeps an SNR of 200 dB at least"),
    ],
)
def test_search_refuses(
    more: list[str], code: int, part: str, compress: list[str], tmp_path: Path, capsys: Capture
) -> None:
    fm.refused([*compress, *more], capsys, code, part)
    assert not (tmp_path / "out.onnx").exists()


def test_search_without_data(compress: list[str], capsys: Capture) -> None:
    bare = [a for a in compress if a != "--calib" and not a.endswith(".npz")]
    fm.refused([*bare, "--min-snr", "9"], capsys, 4, "8 samples to judge by", "give --calib")


# sweep


def test_sweep_options_reach_the_library(
    sweep: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--budget", "latency", "--ratios", "0.9,.5", "--models", str(tmp_path),
            "--repair", "none", "--batch", "8", "--timing-limit", "3", "--cache", "",
            "--include", "a*"]  # fmt: skip
    got = caught("sweep", [*sweep, *more], monkeypatch)
    assert (got["budget"], got["ratios"], got["models"]) == ("latency", (0.9, 0.5), str(tmp_path))
    assert (got["repair"], got["batch"], got["timing_limit"]) == ("none", 8, 3.0)
    assert (got["cache"], got["include"]) == ("", ["a*"])
    plain = caught("sweep", sweep, monkeypatch)
    assert not {"budget", "ratios"} & set(plain)


def test_sweep(sweep: list[str], tmp_path: Path, capsys: Capture) -> None:
    data, models = tmp_path / "s.json", tmp_path / "models"
    more = ["--ratios", "0.8,0.5,0.01", "--report", str(data), "--models", str(models)]
    assert fm.command([*sweep, *more]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for part in (
        "original",
        "macs=0.8",
        "macs=0.5",
        "macs=0.01: macs=0.01: these passes cannot go below",
    ):
        assert part in out
    found = json.loads(data.read_text(encoding="utf-8"))
    assert [p["target"] for p in found["points"]] == ["macs=0.8", "macs=0.5"]
    assert found["command"].startswith("onnx-lowrank sweep")
    assert {p.name for p in models.iterdir()} == {"macs-0.8.onnx", "macs-0.5.onnx"}
    assert fm.command([*sweep, "--ratios", "0.8", "-q"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.full
def test_sweep_draws(sweep: list[str], tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.svg"
    assert fm.command([*sweep, "--ratios", "0.8,0.5", "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.replace("\n", "").endswith(f"wrote {picture}")
    assert "top-1 accuracy (100 samples)" in picture.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--ratios", "half"], 2, "--ratios 'half' is no"),
        (["--ratios", "50,25"], 2, "'50' without a sign would mean 5000 %; write 50% or 0.5"),
        (["--ratios", ""], 2, "is no fraction"),
        (["--ratios", "0.5,0"], 2, "write macs=R"),
        (["--budget", "flops"], 2, "--budget"),
        (["--target", "macs=0.5"], 2, "--target"),
        (["--plot", "a.pdf"], 2, ".png or .svg"),
        (["--plot", "/no/such/a.svg"], 2, "/no/such does not exist"),
        (["--report", "/no/such/a.json"], 2, "/no/such does not exist"),
        (["--models", "/dev/null/models"], 2, "/dev/null/models: cannot be made"),
        (["--ratios", "0.01"], 5, "these passes cannot go below"),
    ],
)
def test_sweep_refuses(
    more: list[str], code: int, part: str, sweep: list[str], capsys: Capture
) -> None:
    fm.refused([*sweep, *more], capsys, code, part)
