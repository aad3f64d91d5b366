"""What ``apply`` makes of a plan: the bytes of ``compress``, what a hand changed, or a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto

from onnx_lowrank.engine.api import Result, apply, compress, plan
from onnx_lowrank.errors import LowRankError, OptionError, PlanError
from onnx_lowrank.layers import Layer
from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan
from tests import fixtures_models as fm
from tests.scripted_timer import taking
from tests.support import layers_of

CALIB = {"x": fm.pictures(60)}
PASSES = "fold_batchnorm,spatial_svd,channel_svd,tucker2,prune_channels"
NET = fm.residual_net(16)


#: options of every run
RUN: dict[str, Any] = {"threads": 1, "timer": taking(0.5)}


@pytest.fixture(scope="module")
def both() -> Plan:
    """Of pruning and factorization under one budget."""
    made = plan(NET, calib=CALIB, target="macs=0.45", passes=PASSES, effort="quick", **RUN)
    assert {d.decision for d in made.decisions} == {"keep", "factorize"}
    assert [g.decision for g in made.groups] == ["cut", "frozen"]
    return made


def applied(to: Plan, model: Any = NET, **options: Any) -> Result:
    return apply(model, to, **{"calib": CALIB, "force": True, **RUN, **options})


def bytes_of(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def layers(model: ModelProto) -> dict[str, Layer]:
    return {la.name: la for la in layers_of(model)}


def with_layer(to: Plan, name: str, /, **changes: Any) -> Plan:
    rows = [replace(d, **changes) if d.layer == name else d for d in to.decisions]
    return Plan.from_json(replace(to, decisions=tuple(rows)).to_json())


def with_group(to: Plan, name: str, /, **changes: Any) -> Plan:
    rows = [replace(g, **changes) if g.name == name else g for g in to.groups]
    return Plan.from_json(replace(to, groups=tuple(rows)).to_json())


def factorized(to: Plan) -> Decision:
    return next(d for d in to.decisions if d.method.startswith("spatial_svd"))


# the same bytes


@pytest.mark.full
def test_apply_is_compress(both: Plan, tmp_path: Path) -> None:
    onnx.save(NET, tmp_path / "in.onnx")
    whole = compress(
        tmp_path / "in.onnx", calib=CALIB, target="macs=0.45", passes=PASSES, effort="quick",
        force=True, **RUN,
    )  # fmt: skip
    again = Plan.from_json(whole.plan.to_json())
    parts = apply(tmp_path / "in.onnx", again, calib=CALIB, force=True, **RUN)
    for result, name in ((whole, "a"), (parts, "b")):
        result.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert whole.plan == parts.plan
    assert whole.report.decisions == parts.report.decisions
    assert whole.report.groups == parts.report.groups == both.groups


@pytest.mark.parametrize(
    "options",
    [
        {"calib": None},
        {"samples": 30, "seed": 5},
        {"passes": "prune_channels{solve=false,method=l2,keep=0.5}"},
        *(
            pytest.param(options, marks=pytest.mark.full)
            for options in (
                {"exclude": ["conv2"]},
                {"passes": "prune_channels{chain=bottom_up}"},
                {"passes": "svd,spatial_svd", "target": None, "ranks": "ratio=0.5"},
                {"target": ["params=0.6", "macs=0.7"], "passes": "spatial_svd,channel_svd"},
            )
        ),
    ],
    ids=str,
)
def test_whatever_the_options(options: dict[str, Any]) -> None:
    options = {"calib": CALIB, "target": "macs=0.6", "passes": PASSES, **RUN, **options}
    whole = compress(NET, **options, force=True)
    made = plan(NET, **options)
    assert made == whole.plan
    again = applied(Plan.from_json(made.to_json()), calib=options["calib"])
    assert bytes_of(again.model) == bytes_of(whole.model)


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from onnx_lowrank import Plan, apply
from tests import fixtures_models as fm
from tests.scripted_timer import taking
folder = sys.argv[1]
data = {{"x": fm.pictures(60)}}
plan = Plan.load(folder + "/plan.json")
result = apply(folder + "/in.onnx", plan, calib=data, threads=1, timer=taking(0.5), force=True)
result.save(folder + "/out.onnx")
"""


@pytest.mark.full
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_in_another_process(hash_seed: str, tmp_path: Path) -> None:
    onnx.save(NET, tmp_path / "in.onnx")
    whole = compress(
        tmp_path / "in.onnx", calib=CALIB, target="macs=0.45", passes=PASSES, force=True, **RUN
    )
    whole.save(tmp_path / "wanted.onnx")
    (tmp_path / "plan.json").write_text(whole.plan.to_json(), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", SCRIPT.format(root=str(fm.ROOT)), str(tmp_path)], check=True,
        timeout=120, env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "wanted.onnx").read_bytes()


def test_without_refit(both: Plan) -> None:
    parts = applied(replace(both, repair="none"))
    assert parts.report.refits == ()
    refit = applied(both)
    assert refit.report.refits
    assert bytes_of(parts.model) != bytes_of(refit.model)
    x = {"x": fm.pictures(60, seed=3)}
    wanted = fm.run(NET, x)["y"]
    bare, repaired = (fm.relative(fm.run(r.model, x)["y"], wanted) for r in (parts, refit))
    assert repaired < bare


@pytest.mark.full
@pytest.mark.parametrize("repair", ["last", "relu"])
def test_the_repair_of_the_plan_is_done(both: Plan, repair: str) -> None:
    """As ``compress`` does it, for the plan says all."""
    done = applied(Plan.from_json(replace(both, repair=repair).to_json()))
    whole = compress(
        NET, calib=CALIB, target=both.target, passes=list(both.passes), repair=repair,
        effort="quick", force=True, **RUN,
    )  # fmt: skip
    assert whole.plan == replace(both, repair=repair)
    assert bytes_of(done.model) == bytes_of(whole.model)
    assert bytes_of(done.model) != bytes_of(applied(replace(both, repair="chain")).model)
    assert any(r.behind_relu is not None for r in done.report.refits) == (repair == "relu")


def test_a_repair_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="repair is 'best'; it should be one of none, last"):
        compress(NET, calib=CALIB, repair="best")


def test_other_data_gives_other_weights_and_a_note(both: Plan) -> None:
    other = applied(both, calib={"x": fm.pictures(60, seed=9)})
    assert any("not that of the plan" in note for note in other.report.said)
    ours = applied(both)
    assert not any("not that of the plan" in note for note in ours.report.said)
    shapes = [[t.dims for t in r.model.graph.initializer] for r in (other, ours)]
    assert shapes[0] == shapes[1]
    assert bytes_of(other.model) != bytes_of(ours.model)


# a hand's changes


def test_a_layer_set_to_keep(both: Plan) -> None:
    name = factorized(both).layer
    result = applied(with_layer(both, name, decision="keep"))
    shape = layers(NET)[name].shape
    left = len(both.groups[0].kept)
    kept = layers(result.model)[name]
    assert kept.shape == (left if shape[0] == 16 and name != "conv3" else 16, left, 3, 3)
    assert result.report.after.macs > applied(both).report.after.macs
    assert result.plan.digest != both.digest


def test_a_layer_set_to_factorize(both: Plan) -> None:
    name = next(d.layer for d in both.decisions if d.decision == "keep")
    other = with_layer(both, name, decision="factorize", method="spatial_svd", variant="vh", rank=3)
    result = applied(other)
    assert name not in {la for la, d in layers(result.model).items() if d.shape[2:] == (3, 3)}
    (row,) = [d for d in result.report.decisions if d.layer == name]
    before = next(d for d in both.decisions if d.layer == name)
    assert 0 < row.macs_after < before.macs_after
    assert 0 < row.error < 1


@pytest.mark.parametrize("rank", [1, 5, 16])
def test_another_rank(rank: int, both: Plan) -> None:
    name = factorized(both).layer
    result = applied(with_layer(both, name, rank=rank))
    row = next(d for d in result.report.decisions if d.layer == name)
    assert row.rank == rank
    narrow = [la for la in layers(result.model).values() if la.shape[0] == rank]
    assert any(1 in la.shape[2:] and 3 in la.shape[2:] for la in narrow)
    expected = sum(d.macs_after for d in result.report.decisions)
    assert result.report.after.macs == expected


def test_another_method(both: Plan) -> None:
    name = factorized(both).layer
    other = with_layer(both, name, method="channel_svd", variant="spatial_first", rank=4)
    made = layers(applied(other).model).values()
    assert any(la.shape[0] == 4 and la.shape[2:] == (3, 3) for la in made)


def test_other_channels(both: Plan) -> None:
    result = applied(with_group(both, "conv0", kept=(1, 2, 10)))
    first = layers(result.model)["conv0"]
    assert first.shape[0] == 3
    # the rows of channels that nobody refits are those of the original
    unrepaired = replace(both, repair="none")
    bare = applied(with_group(unrepaired, "conv0", kept=(1, 2, 10)))
    np.testing.assert_array_equal(
        layers(bare.model)["conv0"].stage.weight, layers(NET)["conv0"].stage.weight[[1, 2, 10]]
    )


def test_a_group_set_to_keep(both: Plan) -> None:
    result = applied(with_group(both, "conv0", decision="keep"))
    assert layers(result.model)["conv0"].shape[0] == 16


def test_a_cut_that_keeps_all(both: Plan) -> None:
    unrepaired = replace(both, repair="none")
    all_kept = applied(with_group(unrepaired, "conv0", kept=tuple(range(16))))
    keep = applied(with_group(unrepaired, "conv0", decision="keep"))
    x = {"x": fm.pictures(20)}
    wanted = fm.run(keep.model, x)["y"]
    assert fm.relative(fm.run(all_kept.model, x)["y"], wanted) < 1e-3


def test_a_gather_by_hand(both: Plan) -> None:
    gather = GroupDecision("conv1 (input)", "gather", 16, (0, 3, 15), 0.0, "by hand")
    rows = (replace(both.groups[0], decision="keep"), gather)
    result = applied(replace(both, groups=rows))
    (node,) = [n for n in result.model.graph.node if n.op_type == "Gather"]
    index = next(t for t in result.model.graph.initializer if t.name == node.input[1])
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(index), [0, 3, 15])


def test_a_layer_set_to_skip_is_kept_bit_for_bit(both: Plan) -> None:
    rows = [replace(g, decision="keep") for g in both.groups]
    other = with_layer(replace(both, groups=tuple(rows)), "conv2", decision="skip")
    kept = layers(applied(other).model)["conv2"].stage.weight
    np.testing.assert_array_equal(kept, layers(NET)["conv2"].stage.weight)


# refusals


def test_of_another_model(both: Plan) -> None:
    with pytest.raises(PlanError, match="another model") as caught:
        applied(both, fm.residual_net(12))
    assert both.model[:16] in str(caught.value)


def _row(**changes: Any) -> dict[str, Any]:
    return changes


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (_row(decision="factorize", method="svd", rank=4), "method 'svd' is not among the plan's"),
        (_row(decision="factorize", method="prune_channels", rank=4), "'prune_channels' is not"),
        (_row(decision="factorize", method="", rank=4), "method '' is not among the plan's"),
        (_row(decision="factorize", method="tucker2", variant="?", rank=4), "has no variant '?'"),
        (_row(decision="factorize", method="spatial_svd", variant="vh", rank=(4, 4)), "rank"),
        (_row(decision="factorize", method="spatial_svd", variant="vh", rank=2**62), "rank"),
        (_row(layer="conv9"), "'conv9'"),
    ],
)
def test_layers_that_cannot_be_so(changes: dict[str, Any], part: str, both: Plan) -> None:
    with pytest.raises(PlanError) as caught:
        applied(with_layer(both, "conv1", **changes))
    assert part in str(caught.value)
    assert "conv" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "part"),
    [
        ("conv0", _row(name="conv5"), "'conv5'"),
        ("conv3", _row(decision="cut", kept=(0,)), "'conv3', which is no group that may be cut"),
        ("conv0", _row(size=99, kept=(0, 98)), "'conv0'"),
        ("conv0", _row(size=20), "'conv0'"),
        ("conv0", _row(decision="gather"), "'conv0'"),
        ("conv3", _row(name="conv1 (input)", decision="gather", kept=(3,)), "the same channels"),
    ],
)
def test_groups_that_cannot_be_so(
    name: str, changes: dict[str, Any], part: str, both: Plan
) -> None:
    with pytest.raises(PlanError) as caught:
        applied(with_group(both, name, **changes))
    assert part in str(caught.value)


def test_passes_that_cannot_be_so(both: Plan) -> None:
    with pytest.raises(PlanError, match="pruning pass"):
        applied(replace(both, passes=("spatial_svd", "channel_svd")))
    with pytest.raises(OptionError, match="magic"):
        applied(replace(both, passes=("magic",)))
    with pytest.raises(OptionError, match="one pruning pass at a time"):
        applied(replace(both, passes=("prune_channels", "prune_channels", "spatial_svd")))


def test_a_layer_that_is_not_spoken_of(both: Plan) -> None:
    with pytest.raises(PlanError, match="has no decision for layer 'conv3'"):
        applied(replace(both, decisions=both.decisions[:-1]))


# anything plausible

_VALUES: dict[str, list[Any]] = {
    "decision": ["keep", "factorize", "skip", "cut", "gather", "frozen"],
    "method": ["spatial_svd", "channel_svd", "tucker2", "", "svd", "fold_batchnorm"],
    "variant": ["", "vh", "hv", "spatial_first", "pointwise_first", "full", "nope"],
    "rank": [0, 1, 2, 7, 16, 1000, 2**40, [], [1], [4, 4], [3, 7, 2], [10**9, 10**9]],
    "layer": ["conv0", "conv1", "conv3", "nobody"],
    "name": ["conv0", "conv1", "conv1 (input)", "conv2 (input)"],
    "kept": [[], [0], [15], [0, 5, 9], [16], list(range(16)), list(range(12))],
    "parameters_after": [0, 1, 10**12],
    "size": [0, 1, 8, 16, 99],
    "seed": [1, 2**63 - 1],
    "samples": [None, 1, 2, 10**9],
    "target": ["macs=0.1", "size=0.01", "latency=0.5", "ranks evbmf", "ranks x", "x"],
    "passes": [[], ["spatial_svd"], ["prune_channels"], ["prune_channels{solve=false}", "svd"],
               ["channel_svd", "spatial_svd", "tucker2", "prune_channels{keep=2}"]],
}  # fmt: skip


@pytest.mark.full
def test_plausible_changes_are_done_or_refused(both: Plan) -> None:
    random, done = np.random.default_rng(0), 0
    for trial in range(60):
        data = json.loads(both.to_json()) | {"repair": "none" if trial % 4 else "chain"}
        for _ in range(int(random.integers(1, 3))):
            rows = random.permutation([*data["decisions"], *data["groups"], data]).tolist()
            keys = sorted(set(rows[0]) & set(_VALUES))
            key = keys[int(random.integers(len(keys)))]
            rows[0][key] = _VALUES[key][int(random.integers(len(_VALUES[key])))]
        with suppress(LowRankError):
            result = applied(Plan.from_json(json.dumps(data)))
            onnx.checker.check_model(result.model, full_check=True)
            result.report.to_json()
            done += 1
    assert 10 < done < 55


def test_what_is_solved_behind_relus_unless_asked_otherwise() -> None:
    def repair(**options: str) -> str:
        asked = {"target": "macs=0.05", "passes": "svd,prune_channels", **options}
        return plan(fm.digits("mlp"), calib=fm.DIGITS, samples=40, **asked, **RUN).repair

    assert repair() == "relu"
    assert repair(target="macs=0.6") == "light"  # loses next to nothing
    assert repair(target="macs=0.6", repair="relu") == "relu"
    assert repair(effort="quick") == "light"
    assert repair(effort="quick", repair="relu") == "relu"
