from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lowrank.cli import main as cli
from onnx_lowrank.errors import OptionError
from onnx_lowrank.planning.layer_globs import check_globs, selected
from tests import fixtures_models as fm

NAMES = ["/encoder/conv1/Conv", "/encoder/conv2/Conv", "head", "lstm"]
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("globs", "said"),
    [
        (["head"], None),
        (["*conv?*", "lstm"], None),
        (["*"], None),
        (["haed"], r"--exclude 'haed' matches no layer; did you mean head\? \(`onnx-lowrank"),
        (["Head"], r"did you mean head\?"),
        (["head", "conv1"], r"--exclude 'conv1' matches no layer"),
        (["/encoder/conv1"], r"did you mean /encoder/conv[12]/Conv"),
        (["zzzzzz"], "the layers are /encoder/conv1/Conv, /encoder/conv2/Conv, head, lstm"),
        ([""], "--exclude '' matches no layer"),
    ],
)
def test_globs(globs: Sequence[str], said: str | None) -> None:
    if said is None:
        check_globs("--exclude", globs, NAMES)
        return
    with pytest.raises(OptionError, match=said):
        check_globs("--exclude", globs, NAMES)


@pytest.mark.parametrize(
    ("include", "exclude", "reason"),
    [
        ((), (), None),
        (("/a/*",), (), None),
        (("/b/*", "*Conv"), (), None),
        (("/b/*",), (), "not named by --include"),
        ((), ("*/conv1/*",), "excluded by --exclude"),
        ((), ("/a/conv[23]/Conv",), None),
        (("*",), ("*",), "excluded by --exclude"),
        (("/A/*",), (), "not named by --include"),
        (("/a",), (), "not named by --include"),
    ],
)
def test_what_globs_leave_out(
    include: Sequence[str], exclude: Sequence[str], reason: str | None
) -> None:
    assert selected("/a/conv1/Conv", include, exclude) == reason


def test_globs_of_a_model_without_layers() -> None:
    with pytest.raises(OptionError, match="the model has no layers"):
        check_globs("--include", ["a"], [])


def test_every_command_refuses_globs_that_match_nothing(
    tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    model, out = str(tiny / "tiny.onnx"), tmp_path / "out"
    calib = ["--calib", str(tiny / "data.npz"), "--cache", ""]
    for command in (["compress", model, str(out)], ["plan", model, str(out)], ["sweep", model]):
        for option in ("--include", "--exclude"):
            argv = [*command, *calib, option, "first", option, "frist"]
            fm.refused(argv, capsys, 2, f"{option} 'frist' matches no layer; did you mean first?")
    assert not out.exists()
    argv = ["inspect", model, "--curves", "--layer", "first", "--layer", "frist"]
    fm.refused(argv, capsys, 2, "--layer 'frist' matches no layer; did you mean first?")


def test_one_glob_alone_is_a_list_of_one() -> None:
    x = fm.classified(60)[0]
    result = fm.quick_compress(fm.classifier(), calib={"x": x}, target="macs=0.9", exclude="second")
    decided = {d.layer: d.reason for d in result.plan.decisions}
    assert decided["second"] == "excluded by --exclude"


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ("img:1,64", "--input-shape img: the model has no such input; it has x"),
        ("x:1,65", "--input-shape x:1,65 does not fit: the model has (?, 64) there"),
        ("x:64", "--input-shape x:64 does not fit: the model has (?, 64) there"),
        ("x:0,64", "--input-shape x:0,64: sizes are 1 or more"),
    ],
)
def test_every_command_refuses_shapes_of_no_input(
    shape: str, part: str, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    model, out = str(tiny / "tiny.onnx"), tmp_path / "out"
    calib = ["--calib", str(tiny / "data.npz")]
    for command in (
        ["compress", model, str(out), *calib],
        ["plan", model, str(out), *calib],
        ["sweep", model, *calib],
        ["inspect", model],
        ["inspect", model, "--curves", *calib],
        ["compress", model, str(out)],
    ):
        fm.refused([*command, "--input-shape", shape], capsys, 2, part)
    assert not out.exists()


def test_shapes_and_data_that_contradict_each_other(tmp_path: Path, capsys: Capture) -> None:
    proto = fm.build(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": ["N", "T", 8]}, {"y": ["N", "T", 8]}, {"w": np.eye(8, dtype=np.float32)},
    )  # fmt: skip
    onnx.save(proto, tmp_path / "in.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((9, 5, 8), np.float32))
    command = ["inspect", str(tmp_path / "in.onnx"), "--curves", "--calib", str(tmp_path / "x.npz")]
    part = "--input-shape x:1,6,8 does not fit: the data has (1, 5, 8) there"
    fm.refused([*command, "--input-shape", "x:1,6,8"], capsys, 2, part)
    for fitting in ("x:1,5,8", "x:16,5,8"):
        assert cli.main([*command, "-q", "--input-shape", fitting]) == 0
    twice = ["--input-shape", "x:1,5,8", "--input-shape", "x:1,6,8"]
    fm.refused([*command, *twice], capsys, 2, "x has a shape already")


# where nothing is left to do


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--exclude", "*"], "2 (excluded by --exclude)"),
        (["--passes", "spatial_svd"], "2 (spatial_svd: has fewer than two kernel axes"),
        (["--passes", "spatial_svd", "--exclude", "first"], "1 (excluded by --exclude)"),
        (["--passes", "prune_channels", "--exclude", "*"], "2 (excluded by --exclude)"),
        (
            ["--passes", "spatial_svd", "--min-snr", "20"],
            "2 (spatial_svd: has fewer than two kernel axes",
        ),
        (["--passes", "cp", "--target", "params=0.5"], "2 (cp: has no spatial kernel)"),
    ],
)
def test_where_nothing_applies_the_reasons_are_counted(
    more: list[str], part: str, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    argv = ["compress", str(tiny / "tiny.onnx"), str(tmp_path / "out.onnx"), "--cache", ""]
    argv += ["--calib", str(tiny / "data.npz"), *more]
    if not {"--target", "--min-snr"} & set(more):
        argv += ["--target", "macs=0.5"]
    fm.refused(argv, capsys, 5, "none of the 2 layers can be compressed by these passes", part)
    assert not (tmp_path / "out.onnx").exists()
