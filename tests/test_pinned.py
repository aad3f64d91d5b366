"""Twelve plans whose models must not change by accident.

The decisions of each plan are compared everywhere. The bytes of its model (our signature left out)
depend on the linear algebra kernels of the machine as well: they are compared where these are the
kernels that recorded them. To record anew, with the reason in the commit message:

    python -m tests.test_pinned --record
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import scipy
from onnx import ModelProto, helper
from threadpoolctl import threadpool_info, threadpool_limits

from onnx_lowrank import compress
from onnx_lowrank.planning.plan import Plan
from tests import fixtures_models as fm
from tests.scripted_timer import taking
from tests.support import make_model, rng

RECORD = Path(__file__).parent / "pinned" / "plans.json"
DIGITS: dict[str, Any] = {"calib": fm.DIGITS, "samples": 200}
EVERYTHING = (
    "fold_batchnorm,tucker2,cp,tensor_train,monochromatic,bicluster,lowrank_sparse,circulant"
)


def recurrent() -> tuple[ModelProto, dict[str, Any]]:
    """An LSTM whose input has few directions, and a dense layer behind it."""
    random, hidden, width = rng(11), 24, 40
    mixed = random.standard_normal((6, width)).astype(np.float32)

    def weight(*shape: int) -> fm.AnyArray:
        return (random.standard_normal(shape) / 4).astype(np.float32)

    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], name="lstm", hidden_size=hidden),
        helper.make_node("Squeeze", ["h", "axes"], ["s"], name="squeeze"),
        helper.make_node("Gemm", ["s", "v"], ["y"], name="dense", transB=1),
    ]
    weights = {
        "w": weight(1, 4 * hidden, width), "r": weight(1, 4 * hidden, hidden),
        "b": weight(1, 8 * hidden), "axes": np.array([0]), "v": weight(16, hidden),
    }  # fmt: skip
    model = make_model(nodes, {"x": [5, 1, width]}, ["y"], weights)
    x = random.standard_normal((60, 5, 1, 6)).astype(np.float32) @ mixed
    return model, {"calib": {"x": x}}


def residual() -> tuple[ModelProto, dict[str, Any]]:
    return fm.residual_net(16), {"calib": {"x": fm.pictures(60)}}


def digits(net: str) -> Callable[[], tuple[Path, dict[str, Any]]]:
    return lambda: (fm.digits(net), DIGITS)


CASES: dict[str, tuple[Callable[[], tuple[Any, dict[str, Any]]], dict[str, Any]]] = {
    "vgg-default-half": (digits("vgg"), {"target": "macs=0.5"}),
    "resnet-default-quarter": (digits("resnet"), {"target": "macs=0.25"}),
    "mlp-default-fifth": (digits("mlp"), {"target": "params=0.2"}),
    "mlp-thorough": (
        digits("mlp"),
        {"target": "params=0.2", "passes": "prune_channels,svd", "effort": "thorough"},
    ),
    "vgg-size-one-form": (
        digits("vgg"),
        {
            "target": "size=0.5",
            "passes": "fold_batchnorm,spatial_svd{split=vh}",
            "exclude": ["*conv1*"],
        },
    ),
    "mlp-rule-error": (digits("mlp"), {"ranks": "error=0.01"}),
    "resnet-without-data": (
        lambda: (fm.digits("resnet"), {}),
        {"target": "macs=0.5"},
    ),
    "residual-other-methods": (
        residual,
        {"target": "macs=0.6", "passes": EVERYTHING, "repair": "chain", "effort": "quick"},
    ),
    "resnet-two-budgets": (
        digits("resnet"),
        {"target": ["macs=0.4", "params=0.35"], "effort": "quick"},
    ),
    "residual-pruned-alone": (
        residual,
        {"target": "macs=0.5", "passes": "prune_channels{chain=top_down}"},
    ),
    "residual-joint-last": (
        residual,
        {
            "target": "macs=0.45",
            "passes": "fold_batchnorm,spatial_svd,channel_svd,prune_channels",
            "repair": "last",
        },
    ),
    "lstm": (recurrent, {"target": "macs=0.6", "passes": "recurrent_svd,svd"}),
}

#: cases of every run, which take a few seconds
QUICK = ("mlp-rule-error", "residual-pruned-alone", "residual-joint-last", "lstm")

#: cases of a minute
SLOW = ("residual-other-methods", "resnet-default-quarter")


def kernels() -> str:
    """What the bits of the linear algebra and of the runtime depend on."""
    blas = sorted(
        f"{i['internal_api']} {i.get('version')} {i.get('architecture')}"
        for i in threadpool_info()
        if i["user_api"] == "blas"
    )
    return f"numpy {np.__version__}, scipy {scipy.__version__}, ort {ort.__version__}, {blas}"


def made(name: str) -> dict[str, Any]:
    """What a case comes to: its decisions, and the digest of its model."""
    source, options = CASES[name]
    model, data = source()
    run: dict[str, Any] = {"threads": 1, "cache": "", "force": True, "timer": taking(0.5)}
    result = compress(model, **run, **data, **options)
    return {"decisions": decisions(result.plan), "model": digest(result.model)}


def decisions(found: Plan) -> list[list[Any]]:
    layers = [[d.layer, d.decision, d.method, d.variant, d.rank] for d in found.decisions]
    groups = [[g.name, g.decision, list(g.kept)] for g in found.groups]
    told: list[list[Any]] = json.loads(json.dumps([*layers, *groups]))
    return told


def digest(model: ModelProto) -> str:
    """SHA-256 of all but our signature."""
    bare = ModelProto()
    bare.CopyFrom(model)
    others = [p for p in bare.metadata_props if not p.key.startswith("onnx_lowrank.")]
    del bare.metadata_props[:]
    bare.metadata_props.extend(others)
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(RECORD.read_text())
    return told


def _marked(name: str) -> Any:
    if name in QUICK:
        return name
    return pytest.param(name, marks=pytest.mark.slow if name in SLOW else pytest.mark.full)


@pytest.mark.parametrize("name", [_marked(name) for name in CASES])
def test_plan_and_model_are_the_recorded_ones(name: str, recorded: dict[str, Any]) -> None:
    now, then = made(name), recorded["cases"][name]
    if recorded["kernels"] == kernels():
        assert now == then
    else:
        assert [d[:4] for d in now["decisions"]] == [d[:4] for d in then["decisions"]]


def test_every_case_is_recorded(recorded: dict[str, Any]) -> None:
    assert list(recorded["cases"]) == list(CASES)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--record"], "python -m tests.test_pinned --record"
    found = {}
    for name in CASES:
        start = time.perf_counter()
        with threadpool_limits(1):  # as in the tests
            found[name] = made(name)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
    RECORD.write_text(json.dumps({"kernels": kernels(), "cases": found}, indent=1) + "\n")
