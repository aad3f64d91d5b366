"""Rows that are cut out of padding are told from others, however a layer reads the positions."""

from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.analysis.counted_rows import counted_rows, only
from onnx_lowrank.chains.geometry import ConvGeometry, Geometry, LinearGeometry
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from tests.support import Array, rng


def pointwise(axes: int) -> ConvGeometry:
    return ConvGeometry((1,) * axes, (1,) * axes, (1,) * axes, (0,) * 2 * axes)


COUNTED = np.arange(5) < np.array([[5], [2], [3]])


@pytest.mark.parametrize(
    ("geometry", "x"),
    [
        (LinearGeometry(), np.repeat(np.arange(15.0).reshape(3, 5, 1), 4, axis=2)),
        (LinearGeometry(), np.repeat(np.arange(15.0).reshape(15, 1), 4, axis=1)),
        (pointwise(1), np.repeat(np.arange(15.0).reshape(3, 1, 5), 4, axis=1)),
        (pointwise(2), np.repeat(np.arange(15.0).reshape(3, 1, 1, 5), 4, axis=1)),
    ],
    ids=["states", "matrix", "convolution", "flat convolution"],
)
def test_positions_that_count(geometry: Geometry, x: Array) -> None:
    rows = counted_rows(COUNTED, geometry, x.shape)
    assert rows is not None
    read = only(geometry.patches(x), rows)
    assert np.array_equal(read[0, :, 0], np.flatnonzero(COUNTED))


def test_some_positions_of_each_sample() -> None:
    x, index = np.repeat(np.arange(15.0).reshape(3, 5, 1), 4, axis=2), np.array([1, 3])
    rows = counted_rows(COUNTED, LinearGeometry(), x.shape, index)
    read = only(LinearGeometry().patches(x, index), rows)
    assert read[0, :, 0].tolist() == [1, 3, 6, 11]


def test_numbers_of_tokens() -> None:
    rows = counted_rows(COUNTED, LookupGeometry(), (3, 5))
    assert rows is not None
    assert np.array_equal(rows, COUNTED.reshape(-1))


@pytest.mark.parametrize(
    ("geometry", "shape"),
    [
        (LinearGeometry(), (3, 4)),  # pooled
        (LinearGeometry(), (3, 7, 4)),  # other positions
        (LinearGeometry(), (3, 2, 5, 4)),  # heads
        (ConvGeometry((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), (3, 4, 8, 8)),
    ],
    ids=str,
)
def test_other_rows_all_count(geometry: Geometry, shape: tuple[int, ...]) -> None:
    assert counted_rows(COUNTED, geometry, shape) is None
    assert counted_rows(None, geometry, (3, 5, 4)) is None
    patches = rng(1).standard_normal((1, 6, 4))
    assert only(patches, None) is patches
