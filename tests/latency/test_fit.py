from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.time_model import Features, features, form_of
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.latency.fit import Fit, Sample
from tests.support import quick, rng

POINT = ConvGeometry.pointwise(2)
SQUARE = replace(POINT, kernel=(3, 3), pads=(1, 1, 1, 1))


def stage(outputs: int, inputs: int, geometry: ConvGeometry = POINT, role: str = "") -> Stage:
    shape = (outputs, inputs // geometry.groups, *geometry.kernel)
    return Stage(np.zeros(shape), None, geometry, role)


def two(rank: int) -> Chain:
    return Chain((stage(rank, 32, SQUARE, "spatial"), stage(48, rank, POINT, "point")))


def drawn(count: int, seed: int, form: str = "f") -> list[tuple[str, Features]]:
    random = rng(seed)
    return [
        (form, (float(e), float(b), float(s), float(n)))
        for e, b, s, n in zip(
            random.uniform(1e5, 1e7, count),
            random.uniform(1e4, 1e6, count),
            random.uniform(1e3, 1e5, count) * random.integers(0, 2, count),
            random.integers(1, 5, count),
            strict=True,
        )
    ]


def test_features_counted_by_hand() -> None:
    workload, moved, relayout, nodes = features(two(16), (2, 32, 5, 5), 4)
    first, last = 2 * 25 * 16 * 32 * 9, 2 * 25 * 48 * 16
    assert workload == first + last
    assert moved == 4 * (50 * (32 + 16) + 16 * 32 * 9 + 50 * (16 + 48) + 48 * 16)
    assert (relayout, nodes) == (0, 2)
    assert features(two(12), (2, 32, 5, 5), 4)[2] == 4 * 50 * 12
    assert features(two(24), (2, 32, 5, 5), 4)[2] == 0
    depthwise = stage(24, 24, replace(SQUARE, groups=24))
    grouped = Chain((stage(24, 32), depthwise, stage(48, 24)))
    assert features(grouped, (2, 32, 5, 5), 4)[2] == 4 * 50 * 24  # in front of it, not behind


def test_a_form_is_the_same_at_all_ranks_that_fill_blocks_and_tells_methods_apart() -> None:
    assert form_of(two(8)) == form_of(two(12)) != form_of(two(16)) == form_of(two(32))
    assert form_of(two(24)) == form_of(two(16))
    mirrored = Chain((stage(16, 32, POINT, "point"), stage(48, 16, SQUARE, "spatial")))
    depthwise = Chain((stage(32, 32, replace(SQUARE, groups=32), "spatial"), stage(48, 32)))
    assert len({form_of(c) for c in (two(16), mirrored, depthwise, Chain((stage(48, 32),)))}) == 4


@quick(30)
@given(rates=st.tuples(*[st.floats(0.1, 10)] * 4), seed=st.integers(0, 99))
def test_planted_rates_are_found(rates: tuple[float, float, float, float], seed: int) -> None:
    """Times that are the model's own are predicted to rounding, also of forms not seen."""
    scale = np.array([1e-12, 1e-11, 1e-10, 1e-6]) * rates

    def seconds(about: Features) -> float:
        return float(scale @ np.array(about))

    fit = Fit([Sample(f, a, seconds(a)) for f, a in drawn(12, seed)])
    for form, about in (*drawn(5, seed + 1000), *drawn(5, seed + 2000, "new")):
        assert fit.seconds(form, about) == pytest.approx(seconds(about), rel=1e-6)


@quick(30)
@given(count=st.integers(1, 20), seed=st.integers(0, 99))
def test_measured_chains_are_met_exactly(count: int, seed: int) -> None:
    seconds = rng(seed, 1).uniform(1e-6, 1e-3, count)
    samples = [
        Sample(f, a, float(s)) for (f, a), s in zip(drawn(count, seed), seconds, strict=True)
    ]
    fit = Fit(samples)
    for sample in samples:
        assert fit.seconds(sample.form, sample.features) == pytest.approx(sample.seconds, rel=1e-9)


def test_between_two_measured_chains_lies_what_the_model_leaves_there() -> None:
    """A form that is twice as slow as the model at one end, and as fast at the other."""
    basis = [Sample(f, a, 1e-9 * a[0]) for f, a in drawn(40, 3, "usual")]
    ends = [
        Sample("odd", (2e6, 0.0, 0.0, 0.0), 2 * 2e-3),
        Sample("odd", (4e6, 0.0, 0.0, 0.0), 4e-3),
    ]
    fit = Fit([*basis, *ends])
    middle = fit.seconds("odd", (3e6, 0.0, 0.0, 0.0))
    assert middle == pytest.approx(math.sqrt(2) * 3e-3, rel=1e-6)
    assert fit.seconds("odd", (1e6, 0.0, 0.0, 0.0)) == pytest.approx(2e-3, rel=1e-6)
    assert fit.seconds("odd", (8e6, 0.0, 0.0, 0.0)) == pytest.approx(8e-3, rel=1e-6)


def test_a_place_with_few_times_of_its_own_takes_its_rates_from_elsewhere() -> None:
    elsewhere = [Sample(f, a, 1e-9 * a[0]) for f, a in drawn(40, 5)]
    assert Fit([], elsewhere).seconds("f", (2e6, 1e5, 0.0, 2.0)) == pytest.approx(2e-3, rel=1e-6)
    own = [Sample("layer", (1e6, 1e5, 0.0, 1.0), 3e-3)]  # three times as slow here
    near = Fit(own, elsewhere).seconds("f", (2e6, 1e5, 0.0, 2.0))
    assert near == pytest.approx(6e-3, rel=0.05)


def test_times_are_positive_whatever_was_measured() -> None:
    fit = Fit([Sample("f", (1e6, 0.0, 0.0, 0.0), 1e-3)] * 6)
    assert fit.seconds("g", (0.0, 0.0, 0.0, 0.0)) > 0
