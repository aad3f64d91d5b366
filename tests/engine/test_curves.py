from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from rich.console import Console

import onnx_lowrank
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Rank, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.cli import main as cli
from onnx_lowrank.engine.curves import Curve, Curves, Point, curves
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.base import Decomposition, Factorization, Skip
from onnx_lowrank.planning.registry import available
from tests import fixtures_models as fm
from tests.support import conv_model

Capture = pytest.CaptureFixture[str]

THREE = "svd,spatial_svd,channel_svd"


@dataclass(frozen=True)
class _Pair:
    """A layer through two places: its rank is a pair."""

    layer: Layer
    variant: str = ""

    def ranks(self) -> Sequence[Rank]:
        return [(1, 2), (2, 2), (60, 60)]

    def error(self, rank: Rank) -> float:
        assert isinstance(rank, tuple)
        return 1 / sum(rank)

    def outline(self, rank: Rank) -> Chain:
        assert isinstance(rank, tuple)
        (outputs, inputs), one = self.layer.shape, self.layer.geometry
        sizes = (inputs, *rank, outputs)
        return Chain(tuple(Stage(np.zeros((n, c)), None, one) for c, n in pairwise(sizes)))

    def cut(self, rank: Rank) -> Chain:
        raise AssertionError("curves need no weights")


@dataclass(frozen=True)
class _Pairs(Factorization):
    """For tests."""

    name: ClassVar[str] = "pairs"

    def refuses(self, layer: Layer) -> Skip | None:
        return Skip("not mine") if layer.name == "second" else None

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        return [_Pair(layer)]


def depthwise() -> ModelProto:
    return conv_model(ConvGeometry.pointwise(2, 4), np.ones((4, 1, 1, 1), np.float32), None)


# figures


def test_without_data_the_curve_is_eckart_young() -> None:
    proto = fm.classifier()
    (weight,) = (numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "w1")
    square = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
    found = curves(proto, passes="svd", layers="first", threads=1)
    (curve,) = found.curves
    assert (curve.layer, curve.method, curve.variant) == ("first", "svd", "")
    assert [p.rank for p in curve.points] == [4, 8, 12, 16, 24]
    for point in curve.points:
        assert isinstance(point.rank, int)
        assert point.macs == point.rank * 128 / 64**2
        assert point.params == (point.rank * 128 + 64) / (64**2 + 64)
        assert abs(point.error - square[point.rank :].sum() / square.sum()) < 1e-6
    assert found.samples == 0
    assert found.macs == {"first": 64**2}
    assert len(found.notes) == 1
    assert "no calibration data" in found.notes[0]


def test_with_data_the_errors_are_those_of_the_plan(tiny: Path) -> None:
    options: dict[str, Any] = {"calib": tiny / "data.npz", "passes": "svd"}
    found = curves(tiny / "tiny.onnx", threads=1, **options)
    assert found.samples == 300
    result = fm.quick_compress(tiny / "tiny.onnx", target="macs=0.5", **options)
    cut = [d for d in result.plan.decisions if d.decision == "factorize"]
    assert cut
    for d in cut:
        (point,) = [p for c in found.of(d.layer) for p in c.points if p.rank == d.rank]
        assert abs(point.error - d.error) < 1e-9
        assert point.macs == d.macs_after / d.macs_before


@pytest.mark.full
def test_every_pass_that_takes_a_layer_draws_a_curve() -> None:
    found = curves(fm.residual_net(6), calib=fm.pictures(8), layers="conv1", threads=1)
    factorizations = {n for n, p in available().items() if issubclass(p, Factorization)}
    drawn = {"spatial_svd", "channel_svd", "tucker2", "cp", "monochromatic", "bicluster"}
    assert drawn | {"lowrank_sparse", "circulant"} <= {c.method for c in found.curves}
    assert {c.method for c in found.curves} <= factorizations
    forms = [(c.method, c.variant) for c in found.curves]
    assert len(set(forms)) == len(forms)
    assert ("spatial_svd", "vh") in forms
    assert ("spatial_svd", "hv") in forms
    for curve in found.curves:
        macs = [p.macs for p in curve.points]
        assert macs == sorted(macs)
        assert 0 < macs[0] <= macs[-1] < 1
        assert all(-1e-9 <= p.error <= 1 + 1e-9 for p in curve.points)


def test_a_rank_may_be_a_tuple() -> None:
    found = curves(fm.classifier(), passes=[_Pairs()], threads=1)
    (curve,) = found.curves
    assert [(p.rank, p.error) for p in curve.points] == [((1, 2), 1 / 3), ((2, 2), 0.25)]
    assert found.skipped == {"second": "pairs: not mine"}
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["layers"][0]["curves"][0]["points"][1]["rank"] == [2, 2]
    assert "0.2500" in text_of(found)


def test_the_model_is_not_changed_and_the_seed_decides() -> None:
    proto = fm.classifier()
    before = proto.SerializeToString(deterministic=True)
    x, _ = fm.classified(60)
    options: dict[str, Any] = {"calib": x, "samples": 20, "passes": "svd", "threads": 1}
    first, again, other = (curves(proto, seed=s, **options) for s in (0, 0, 1))
    assert first == again
    assert first.samples == other.samples == 20
    assert first.curves != other.curves
    assert proto.SerializeToString(deterministic=True) == before


def test_dynamic_sizes() -> None:
    proto = fm.residual_net(16)
    for i in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[i].dim_param = f"d{i}"
    with pytest.raises(OptionError, match="--input-shape x:1,3,224,224"):
        curves(proto)
    found = curves(proto, passes=THREE, input_shapes={"x": (1, 3, 9, 9)}, layers=["*1", "*2"])
    assert found.macs == {"conv1": 16 * 16 * 9 * 81, "conv2": 16 * 16 * 9 * 81}


def test_left_alone() -> None:
    found = curves(depthwise(), passes=THREE, input_shapes={"x": (1, 4, 5, 5)})
    assert found.curves == ()
    assert "is depthwise" in found.skipped["conv"]
    assert "is depthwise" in text_of(found)
    with pytest.raises(OptionError, match="nothing to draw"):
        with_matplotlib(found).plot("never.svg")


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="--layer 'nope' matches no layer; the layers are first, second"
    ):
        curves(fm.classifier(), layers="nope")
    with pytest.raises(OptionError, match="no factorization"):
        curves(fm.classifier(), passes="fold_batchnorm")
    with pytest.raises(DataError):
        curves(fm.classifier(), calib=tmp_path / "absent.npz")


def test_public_names() -> None:
    assert onnx_lowrank.curves is curves
    assert onnx_lowrank.Curves is Curves


# table


STEPS = Curve("conv", "m", "v", (Point(4, 0.2, 0.2, 0.3), Point(8, 0.4, 0.4, 0.04)))


@pytest.mark.parametrize(("macs", "error"), [(0.1, None), (0.2, 0.3), (0.39, 0.3), (1.0, 0.04)])
def test_error_at(macs: float, error: float | None) -> None:
    assert STEPS.error_at(macs) == error


@pytest.mark.parametrize(("error", "macs"), [(0.01, None), (0.04, 0.4), (0.29, 0.4), (0.5, 0.2)])
def test_macs_at(error: float, macs: float | None) -> None:
    assert STEPS.macs_at(error) == macs


def test_frontier() -> None:
    points = [Point((1, 1), 0.1, 0.1, 0.9), Point((1, 2), 0.2, 0.1, 0.95),
              Point((2, 2), 0.3, 0.1, 0.5), Point((3, 1), 0.3, 0.1, 0.6),
              Point((1, 4), 0.4, 0.1, 0.5), Point((3, 3), 0.5, 0.1, 0.1)]  # fmt: skip
    curve = Curve("conv", "m", "", tuple(points))
    assert curve.frontier == (points[0], points[2], points[5])
    assert STEPS.frontier == STEPS.points


def text_of(found: Curves) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        found.print(console)
    return capture.get()


def test_table() -> None:
    worse = Curve("conv", "n", "", (Point((4, 8), 0.5, 0.4, 0.125),))
    found = Curves((STEPS, worse), {"conv": 1234}, {"up[0]": "why not"}, 7, 0, ("a note",))
    lines = text_of(found).splitlines()
    assert lines[0].startswith("relative response error by")
    assert lines[2].split() == ["conv", "1,234", "m", "v", "0.0400", "0.0400", "0.3000", "0.3000",
                                "0.40"]  # fmt: skip
    assert lines[3].split() == ["n", "0.1250", "0.1250", "-", "-", "-"]
    assert lines[4:] == ["up[0]: why not", "note: a note"]


def test_only_the_best_is_bold() -> None:
    worse = Curve("conv", "n", "", (Point((4, 8), 0.5, 0.4, 0.125),))
    bold = []
    for found in ((STEPS,), (STEPS, worse)):
        console = Console(width=200, force_terminal=True, color_system="standard", no_color=False)
        with console.capture() as capture:
            Curves(found, {"conv": 1234}, {}, 7, 0, ()).print(console)
        bold.append(
            [re.findall(r"\x1b\[1m *([\d.]+)", row) for row in capture.get().split("\n")[2:]]
        )
    assert not any(bold[0])  # nothing to be better than
    assert bold[1][0] == ["0.0400", "0.0400", "0.3000", "0.3000", "0.40"]
    assert bold[1][1] == []


def test_a_third_is_a_third() -> None:
    # the ranks of 3x3 kernels fall on thirds, which 0.33 would miss
    curve = Curve("conv", "m", "", (Point(8, 0.2, 0.2, 0.5), Point(16, 16 / 48, 0.4, 0.25)))
    line = text_of(Curves((curve,), {"conv": 9}, {}, 1, 0, ())).splitlines()[2]
    assert line.split()[3:7] == ["0.2500", "0.2500", "0.2500", "0.5000"]


# pictures


def with_matplotlib(found: Curves) -> Curves:
    pytest.importorskip("matplotlib")
    return found


@pytest.mark.full
def test_svg(tmp_path: Path) -> None:
    named = fm.residual_net(16)
    named.graph.node[0].name = "a $x^ <first> $one"
    found = with_matplotlib(curves(named, passes=THREE, calib=fm.pictures(8), threads=1))
    found.plot(tmp_path / "a.svg")
    found.plot(tmp_path / "b.SVG")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.encode() == (tmp_path / "b.SVG").read_bytes()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    drawn = {c.layer for c in found.curves}
    assert {"conv1", "conv2", "conv3"} <= drawn
    for layer in drawn - {named.graph.node[0].name}:
        assert found.macs[layer] == 112_896
        assert texts.count(f"{layer}  (0.113 M MACs)") == 1
    for once in ("MACs left, part of the layer", "relative response error", "spatial_svd vh"):
        assert texts.count(once) == 1, once
    assert {p.name for p in tmp_path.iterdir()} == {"a.svg", "b.SVG"}


def test_a_name_is_no_formula(tmp_path: Path) -> None:
    curve = Curve("$x^$ <1>", "m", "", (Point(1, 0.1, 0.1, 0.0), Point(2, 0.2, 0.2, 0.0)))
    found = Curves((curve,), {"$x^$ <1>": 10}, {}, 0, 0, ())
    with_matplotlib(found).plot(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "$x^$ &lt;1&gt;  (0.01 k MACs)" in text
    assert "relative error of the weights" in text


def test_png(tmp_path: Path) -> None:
    found = Curves((STEPS,), {"conv": 10}, {}, 1, 0, ())
    with_matplotlib(found).plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_missing_matplotlib(
    tiny: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    # said before the data is looked for
    command = ["inspect", str(tiny / "tiny.onnx"), "--curves", "--calib", "absent.npz"]
    remedy = 'pip install "onnx-lowrank[plot]"'
    fm.refused([*command, "--plot", str(tmp_path / "a.svg")], capsys, 2, remedy)
    fm.refused([*command, "--plot", str(tmp_path / "a.pdf")], capsys, 2, ".png or .svg")


# command line


@pytest.fixture
def command(tiny: Path) -> list[str]:
    return ["inspect", str(tiny / "tiny.onnx"), "--curves", "--threads", "1", "--passes", "svd",
            "--calib", str(tiny / "data.npz")]  # fmt: skip


def test_command(command: list[str], capsys: Capture) -> None:
    assert cli.main([*command, "--layer", "f*"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "first" in out
    assert "second" not in out
    assert cli.main([*command, "--json", "--samples", "50"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["samples"]) == (1, 50)
    assert [la["name"] for la in data["layers"]] == ["first", "second"]
    assert {p["rank"] for p in data["layers"][0]["curves"][0]["points"]} >= {4, 8, 12}
    assert cli.main([*command, "-q"]) == 0
    assert capsys.readouterr() == ("", "")


def test_command_draws(command: list[str], tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "a.svg"
    assert cli.main([*command, "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.replace("\n", "").endswith(f"wrote {picture}")
    assert "<svg" in picture.read_text(encoding="utf-8")
    fm.refused([*command, "--plot", str(tmp_path / "no" / "a.svg")], capsys, 2, "does not exist")


def test_command_refuses(command: list[str], tiny: Path, capsys: Capture) -> None:
    fm.refused([*command, "--layer", "nope"], capsys, 2, "--layer 'nope' matches no layer")
    fm.refused([*command, "--json", "--plot", "a.svg"], capsys, 2, "--json and --plot at once")
    fm.refused([*command[:-1], "absent.npz"], capsys, 4, "absent.npz")
    plain = ["inspect", str(tiny / "tiny.onnx")]
    for option in ("--calib", "--layer", "--passes", "--plot", "--samples"):
        fm.refused([*plain, option, "1"], capsys, 2, f"{option} goes with --curves")
