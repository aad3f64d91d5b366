"""Models that others made, as they are; see ../shared/models/README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Factorization
from onnx_lowrank.planning.registry import parse_list
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import input_specs
from onnx_lowrank.samples.made_up import concrete_shape
from tests import fixtures_models as fm
from tests.support import rewritten_in_turn

MODELS, DATA = fm.SHARED / "models", fm.SHARED / "data"
FILES = sorted(MODELS.glob("*.onnx"))
PASSES: list[Factorization] = parse_list(DEFAULT_PASSES)[1]
#: of inputs with dynamic axes beside the batch
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "style_candy": {"inputImage": (1, 3, 96, 96)},
    "superres_upconv7_photo_x2": {"input": (1, 3, 64, 64)},
    "silero_vad_16k": {"input": (1, 576), "state": (2, 1, 128)},
}
#: more than 20 s in the test of identity
SLOW = {
    "cifar10_mlperf_resnet8_large", "cifar10_resnet56", "cifar10_vgg16_bn", "cifar10_vgg_s",
    "pitch_crepe_tiny_conv1d", "style_candy_raw_opset7", "superres_upconv7_photo_x2",
}  # fmt: skip

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not FILES, reason="../shared/models is absent"),
]


each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


def feed_of(path: Path) -> Feed:
    """Random inputs in the range that the model is used to."""
    rng = np.random.default_rng(0)
    feed: dict[str, fm.AnyArray] = {}
    for spec in input_specs(load(path)):
        if spec.name == "sr":
            feed["sr"] = np.array(16000, np.int64)
            continue
        dims = concrete_shape(spec, SHAPES.get(path.stem, {}))
        pixels = path.stem.startswith("style") or "mlperf" in path.stem or "cntk" in path.stem
        values = 255 * rng.random(dims) if pixels else rng.standard_normal(dims)
        feed[spec.name] = values.astype(spec.dtype)
    return feed


def outputs(model: Model, feed: Feed) -> dict[str, Any]:
    return fm.ONE_THREAD.session(model, optimise=False).run(feed)


# 1


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, id=p.stem, marks=getattr(pytest.mark, "slow" if p.stem in SLOW else "full"))
     for p in FILES],
)  # fmt: skip
def test_full_rank_is_the_identity(path: Path) -> None:
    source, feed = load(path), feed_of(path)
    layers, others = find_layers(Graph(source))
    assert layers or others
    expected = outputs(source, feed)
    for model in rewritten_in_turn(source, PASSES):
        for name, values in outputs(model, feed).items():
            reference = np.asarray(expected[name])
            assert values.shape == reference.shape
            if reference.dtype.kind == "f":
                assert fm.relative(values, reference) < 1e-4
            else:
                np.testing.assert_array_equal(values, reference)


# 2


@each_file
def test_inspect_counts_every_layer(path: Path) -> None:
    found = inspect(path, input_shapes=SHAPES.get(path.stem, {}))
    assert found.layers
    assert found.notes == ()
    assert all(la.reason for la in found.layers)
    assert found.cost.bytes == path.stat().st_size
    assert found.cost.parameters > 1000
    if not path.stem.startswith("silero"):  # all of its layers are in branches of an If
        assert found.cost.macs == sum(la.macs or 0 for la in found.layers)
        assert any(la.eligible for la in found.layers)


# 3


def cifar(images: fm.AnyArray) -> fm.AnyArray:
    """As the model's README says."""
    scaled = images.astype(np.float32) / 255
    if scaled.shape[-1] == 3:
        scaled = scaled.transpose(0, 3, 1, 2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return fm.float32((scaled - mean[:, None, None]) / std[:, None, None])


@pytest.mark.slow
def test_resnet20_at_half_its_macs(tmp_path: Path) -> None:
    path = MODELS / "cifar10_resnet20.onnx"
    with np.load(DATA / "cifar10.npz") as data:
        train, test = cifar(data["x_train"][:500]), cifar(data["x_test"][:1000])
        labels = data["y_test"][:1000]
    name = input_specs(load(path))[0].name
    calib = {name: train, f"test.{name}": test, "test.labels": labels}
    result = fm.quick_compress(path, calib=calib, target="macs=0.5", seed=0)
    result.save(tmp_path / "out.onnx")
    counted = inspect(tmp_path / "out.onnx").cost
    assert counted.macs == result.report.after.macs
    assert counted.macs <= 0.5 * inspect(path).cost.macs
    accuracy = result.report.validation.accuracy
    assert accuracy is not None
    assert accuracy.samples == 1000
    assert accuracy.new >= 0.895
