from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.errors import PlanError
from onnx_lowrank.planning.plan import Decision, GroupDecision, Plan
from tests.conftest import Count

Change = Callable[[dict[str, Any]], Any]


def decision(layer: str = "conv1", kind: str = "factorize", **changes: Any) -> Decision:
    made = Decision(layer, "Conv", kind, "svd", "", 8, 0.125, 1000, 400, 100, 40, "0.40 of it")
    return replace(made, **changes)


def example() -> Plan:
    return Plan(
        "ab" * 32, "cd" * 32, "macs=0.5", 3, None, ("fold_batchnorm", "svd", "prune_channels"),
        (
            decision(),
            decision("conv2", rank=(4, 8), method="tucker2", variant="full"),
            decision("é 模", "keep", method="", rank=0),
            decision("inner", "skip", method="", rank=0),
            decision("inner", "skip", method="", rank=0),
        ),
        (
            GroupDecision("conv1", "cut", 8, (0, 2, 7), 0.01, "3 of 8 channels are left"),
            GroupDecision("conv2 (input)", "gather", 4, (1,), 0.2, "1 of 4 channels are left"),
            GroupDecision("conv2", "keep", 4, (), 0.0, "the budget is met"),
            GroupDecision("fc", "frozen", 4, (), 0.0, "graph output y"),
        ),
    )  # fmt: skip


def edited(change: Change) -> str:
    data = json.loads(example().to_json())
    change(data)
    return json.dumps(data)


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    return message


# there and back


def test_there_and_back() -> None:
    plan = example()
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.digest == plan.digest
    assert type(again.decisions[1].rank) is tuple


def test_the_digest_is_of_every_field() -> None:
    plan = example()
    others = [
        replace(plan, seed=4),
        replace(plan, target="macs=0.4"),
        replace(plan, samples=9),
        replace(plan, decisions=plan.decisions[1:]),
        replace(plan, groups=plan.groups[1:]),
    ]
    assert len({p.digest for p in (plan, *others)}) == 6


def test_whole_numbers_do_for_others() -> None:
    """A hand writes 0 for 0.0."""
    plan = Plan.from_json(edited(lambda d: d["decisions"][0].update(error=0)))
    assert type(plan.decisions[0].error) is float


@pytest.mark.parametrize("target", ["size=0.25", "macs=0.5 latency=0.5", "ranks evbmf"])
def test_targets(target: str) -> None:
    plan = replace(example(), target=target)
    assert Plan.from_json(plan.to_json()) == plan


def test_the_text_is_readable() -> None:
    text = example().to_json()
    assert max(map(len, text.splitlines())) < 100
    assert '"layer": "conv1"' in text


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(example().to_json() + "\n", encoding="utf-8")
    assert Plan.load(path) == example()
    assert Plan.load(str(path)) == example()


# what is refused


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: d.pop("seed"), "plan lacks the field 'seed'"),
        (lambda d: d.pop("decisions"), "plan lacks the field 'decisions'"),
        (lambda d: d.pop("groups"), "plan lacks the field 'groups'"),
        (lambda d: d.update(extra=1), 'plan has the unknown field "extra"; remove it'),
        (lambda d: d.update(schema=1), "plan has schema 1, and this version reads schema 4; write"),
        (lambda d: d.pop("schema"), "plan has schema null"),
        (lambda d: d.update(schema="2"), 'plan has schema "2"'),
        (lambda d: d.update(decisions={}), "plan.decisions is {}; it should be a list"),
        (lambda d: d.update(groups=None), "plan.groups is null; it should be a list"),
        (lambda d: d.update(passes="svd"), 'plan.passes is "svd"; it should be a list of strings'),
        (lambda d: d.update(passes=[1]), "plan.passes is [1]"),
        (lambda d: d.update(seed=-1), "plan.seed is -1; it should be a whole number, 0 or more"),
        (lambda d: d.update(seed=2**70), "plan.seed is"),
        (lambda d: d.update(seed=True), "plan.seed is true"),
        (lambda d: d.update(seed=1.0), "plan.seed is 1.0"),
        (lambda d: d.update(samples=0), "plan.samples is 0; it should be a whole number, 1 or"),
        (lambda d: d.update(samples="all"), 'plan.samples is "all"'),
        (lambda d: d.update(model=None), "plan.model is null; it should be a string"),
        (lambda d: d.update(target="half"), "plan: target 'half'; write macs=R or"),
        (lambda d: d.update(repair=True), "plan.repair is true; it should be a string"),
        (
            lambda d: d.update(repair="all"),
            "plan: repair is 'all'; it should be one of none,",
        ),
        (lambda d: d.pop("repair"), "plan lacks the field 'repair'"),
        (lambda d: d.update(target="size=x"), "plan: target 'size=x'"),
        (lambda d: d.update(target="macs=nan"), "plan: target 'macs=nan'"),
        (lambda d: d.update(target=""), "plan: target ''"),
        (lambda d: d.update(target="macs=0.5 size=2"), "plan: target 'size=2'"),
        (lambda d: d.update(target="ranks fair"), "plan: rank rule 'fair'"),
        (lambda d: d.update(target="macs=\ud800"), "plan.target is"),
        (lambda d: d["decisions"].append(3), "decisions[5] should be a JSON object"),
        (lambda d: d["decisions"].append([]), "decisions[5] should be a JSON object"),
        (
            lambda d: d["decisions"].append(d["decisions"][0]),
            '("conv1"): this layer has a decision',
        ),
        (lambda d: d["decisions"][1].pop("rank"), "decisions[1] lacks the field 'rank'"),
        (lambda d: d["decisions"][1].update(ranks=3), 'decisions[1] has the unknown field "ranks"'),
        (lambda d: d["decisions"][1].update(rank="8"), 'decisions[1].rank is "8"'),
        (lambda d: d["decisions"][1].update(rank=-8), "decisions[1].rank is -8"),
        (lambda d: d["decisions"][1].update(rank=[4, -1]), "decisions[1].rank is [4, -1]"),
        (lambda d: d["decisions"][1].update(rank=[[4]]), "decisions[1].rank is [[4]]"),
        (lambda d: d["decisions"][1].update(rank=None), "decisions[1].rank is null"),
        (lambda d: d["decisions"][1].update(rank=1.5), "decisions[1].rank is 1.5"),
        (lambda d: d["decisions"][1].update(rank=10**30), "decisions[1].rank is 1000"),
        (lambda d: d["decisions"][0].update(rank=0), "rank is 0; it should be 1 or more"),
        (lambda d: d["decisions"][1].update(rank=[]), "rank is []; it should be 1 or more"),
        (lambda d: d["decisions"][1].update(rank=[4, 0]), "rank is [4, 0]; it should be 1 or more"),
        (lambda d: d["decisions"][2].update(error=float("nan")), "decisions[2].error is NaN"),
        (lambda d: d["decisions"][2].update(error=float("inf")), "decisions[2].error is Infinity"),
        (lambda d: d["decisions"][2].update(error="0"), 'decisions[2].error is "0"'),
        (lambda d: d["decisions"][2].update(error=10**400), "decisions[2].error is 1000"),
        (lambda d: d["decisions"][2].update(macs_after=-1), "decisions[2].macs_after is -1"),
        (
            lambda d: d["decisions"][0].update(decision="Keep"),
            '[0] ("conv1"): decision is "Keep"; it should be keep, factorize, share or skip',
        ),
        (lambda d: d["decisions"][0].update(reason=[]), "decisions[0].reason is []"),
        (
            lambda d: d["groups"][0].update(decision="drop"),
            'groups[0] ("conv1"): decision is "drop"; it should be cut, gather, keep or frozen',
        ),
        (lambda d: d["groups"][0].update(kept=[0, 8]), "kept should be channel numbers below 8"),
        (lambda d: d["groups"][0].update(kept=[2, 0]), "kept should be channel numbers below 8"),
        (lambda d: d["groups"][0].update(kept=[2, 2]), "kept should be channel numbers below 8"),
        (lambda d: d["groups"][0].update(kept=[-1]), "groups[0].kept is [-1]"),
        (lambda d: d["groups"][0].update(kept=3), "groups[0].kept is 3"),
        (lambda d: d["groups"][0].update(kept=[True]), "groups[0].kept is [true]"),
        (lambda d: d["groups"][1].update(kept=[]), "kept is empty; it should list at least one"),
        (
            lambda d: d["groups"][2].update(name="fc"),
            'groups[3] ("fc"): this group has a decision',
        ),
        (lambda d: d["groups"][2].update(loss=None), "groups[2].loss is null"),
    ],
)
def test_the_place_is_named(change: Change, part: str) -> None:
    assert part in refusal(edited(change))


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '"plan"', "{}", "\x00", "[" * 10**6, '{"schema":' * 10**5,
     '{"schema": 2', "9" * 5000],
)  # fmt: skip
def test_what_is_no_plan(text: str) -> None:
    refusal(text)


@pytest.mark.parametrize("field", ["seed", "decisions", "target", "model", "schema", "samples"])
def test_deep_nesting_is_no_value(field: str) -> None:
    """As deep as the reader of JSON lets through, and deeper."""
    for depth in (100, 900, 5000, 10**5):
        deep = "[" * depth + "]" * depth
        text = edited(lambda d: d.update({field: "HERE"}))
        refusal(text.replace('"HERE"', deep))


def test_truncated_anywhere() -> None:
    text = example().to_json()
    for end in range(0, len(text) - 1, 7):
        refusal(text[:end])


@pytest.mark.parametrize("raw", [b"\xff\xfe", b"\x80abc", b""])
def test_files_that_are_no_text(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(raw)
    with pytest.raises(PlanError):
        Plan.load(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "x\x00y"):
        with pytest.raises(PlanError, match="cannot be read"):
            Plan.load(path)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    with path.open("wb") as file:
        file.truncate(10**12)  # a hole: it takes no room
    monkeypatch.setattr(
        importlib.import_module("onnx_lowrank.planning.plan"), "_LARGEST_FILE", 1 << 20
    )
    with pytest.raises(PlanError, match="more than 1 MiB, which is too large for a plan"):
        Plan.load(path)


# anything at all

_ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**25, 0.5, -0.0, 1e308, float("nan"),
    float("inf"), "", "keep", "svd", "\ud800", "a" * 1000, [], [[]], [0], [1, 2, 3], [None], {},
    {"layer": 1}, [{}], ["svd"],
]  # fmt: skip


def mutated(data: Any, random: np.random.Generator) -> Any:
    """One value of it replaced, removed, doubled or added."""
    if isinstance(data, (dict, list)) and data and random.uniform() < 0.85:
        data = copy.copy(data)
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = keys[int(random.integers(len(keys)))]
        kind = random.integers(8)
        if kind == 0:
            del data[key]
        elif kind == 1 and isinstance(data, list):
            data.append(data[key])
        elif kind == 1:
            data[f"{key}_"] = data[key]
        else:
            data[key] = mutated(data[key], random)
        return data
    if isinstance(data, str) and random.uniform() < 0.5:
        place = int(random.integers(len(data) + 1))
        return data[:place] + "}{x="[int(random.integers(4))] + data[place:]
    return copy.deepcopy(_ODD[int(random.integers(len(_ODD)))])


@pytest.mark.parametrize(
    ("seed", "changes"), [(0, 1500), pytest.param(1, 10_000, marks=pytest.mark.full)]
)
def test_any_change_is_a_plan_or_refused(seed: int, changes: int, count: Count) -> None:
    random, whole = np.random.default_rng(seed), json.loads(example().to_json())
    fine = 0
    for _ in range(changes):
        data = whole
        for _ in range(int(random.integers(1, 4))):
            data = mutated(data, random)
        try:
            plan = Plan.from_json(json.dumps(data))
        except PlanError:
            count("mutated plans", "refused")
            continue
        count("mutated plans", "read")
        fine += 1
        text = plan.to_json()
        assert "NaN" not in text
        assert "Infinity" not in text
        text.encode()
        assert Plan.from_json(text) == plan
        assert len(plan.digest) == 64
    assert 0.05 * changes < fine < 0.95 * changes


def test_any_change_of_the_text_is_a_plan_or_refused() -> None:
    random, text = np.random.default_rng(1), example().to_json()
    pieces = ["{", "}", "[", "]", ",", ":", '"', "-", "1e999", "NaN", "\\u0000", "0", " ", "\x00"]
    for _ in range(500):
        start, stop = np.sort(random.integers(0, len(text), 2))
        stop = min(stop, start + int(random.integers(0, 20)))
        new = text[:start] + pieces[int(random.integers(len(pieces)))] + text[stop:]
        with suppress(PlanError):
            plan = Plan.from_json(new)
            assert Plan.from_json(plan.to_json()) == plan
