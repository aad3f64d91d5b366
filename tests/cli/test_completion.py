from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from onnx_lowrank.cli import main as cli
from onnx_lowrank.cli.completion import SHELLS
from onnx_lowrank.passes import BUILT_IN
from tests import fixtures_models as fm

Capture = pytest.CaptureFixture[str]


def script(shell: str, capsys: Capture) -> str:
    assert cli.main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path, capsys: Capture) -> None:
    """Each line as bash would ask for it: the words so far, and the last one to be completed."""
    (tmp_path / "model.onnx").touch()
    (tmp_path / "folder").mkdir()
    wanted = {
        "val": ["validate"],
        "compress --targ": ["--target"],
        "compress --repair ": ["none", "last", "light", "chain", "relu"],
        "compress mod": ["model.onnx"],
        "compress model.onnx out.onnx --report mod": ["model.onnx"],
        "compress model.onnx out.onnx --cache f": ["folder"],
        "inspect --al": ["--all"],
        "explain spat": ["spatial_svd"],
        "explain ": [p.name for p in BUILT_IN],
        "completion ": list(SHELLS),
    }
    lines = [script("bash", capsys), "compopt() { :; }"]  # which works only while completing
    for line in wanted:
        *words, last = line.split(" ")
        asked = shlex.join(["onnx-lowrank", *words, last])
        lines += [
            f"COMP_WORDS=({asked}); COMP_CWORD={len(words) + 1}; COMPREPLY=()",
            "_shtab_onnx_lowrank; echo ${COMPREPLY[@]}",
        ]
    done = subprocess.run(
        ["bash"], input="\n".join(lines), text=True, cwd=tmp_path, capture_output=True,
        timeout=60, check=True,
    )  # fmt: skip
    found = dict(zip(wanted, map(str.split, done.stdout.splitlines()), strict=True))
    assert found == wanted, done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_can_read_their_scripts(shell: str, capsys: Capture) -> None:
    text = script(shell, capsys)
    assert "onnx-lowrank" in text
    for part in ("compress", "validate", "target", "spatial_svd"):
        assert part in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True, timeout=60)


def test_other_shells(capsys: Capture) -> None:
    fm.refused(["completion", "ksh"], capsys, 2, "no completion for 'ksh'; choose from bash, zsh")
