from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnx_lowrank.analysis.accumulator import Accumulator
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.channel_selection import Part, Selection, parts_of, solved_weights
from tests import fixtures_channels as fc
from tests.support import layers_of, quick, rng

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.intp]


def conv(inputs: int, outputs: int, kernel: int = 3, groups: int = 1, seed: int = 0) -> Layer:
    net = fc.Net(seed, (None, inputs, 6, 6))
    net.conv("x", inputs, outputs, kernel, groups=groups, out="y")
    (layer,) = layers_of(net.model())
    return layer


def patches(layer: Layer, rows: int = 400, seed: int = 1) -> Array:
    """Correlated rows ``(groups, rows, d)``, off centre."""
    random = rng(seed, layer.patch)
    mixing = random.normal(size=(layer.groups, layer.patch, layer.patch)) + np.eye(layer.patch)
    shift = random.normal(size=(layer.groups, 1, layer.patch))
    return random.normal(size=(layer.groups, rows, layer.patch)) @ mixing + shift


def exact(rows: Array) -> Moments:
    """Moments as they are, nothing shrunk."""
    sums = Accumulator(len(rows), rows.shape[2])
    sums.update(rows)
    return Moments(sums.count, sums.mean, sums.covariance)


def least_squares(layer: Layer, rows: Array, patch: Labels) -> tuple[float, Array, Array]:
    """Squared error of the best affine map from some columns to the response; it, its constant."""
    total, weights, constants = 0.0, [], []
    for matrix, x in zip(layer.stage.matrices, rows, strict=True):
        y = x @ matrix.T
        inputs = np.concatenate([x[:, patch], np.ones((len(x), 1))], axis=1)
        found, *_ = np.linalg.lstsq(inputs, y, rcond=None)
        total += float(np.mean(np.sum((y - inputs @ found) ** 2, axis=1)))
        weights.append(found[:-1].T)
        constants.append(found[-1])
    return total, np.concatenate(weights), np.concatenate(constants)


def variance(layer: Layer, rows: Array) -> float:
    return sum(
        float(np.sum(np.var(x @ m.T, axis=0)))
        for m, x in zip(layer.stage.matrices, rows, strict=True)
    )


def columns_of(layer: Layer, positions: Labels) -> Labels:
    taps = int(np.prod(layer.shape[2:], dtype=int))
    return np.asarray((positions[..., None] * taps + np.arange(taps)).reshape(-1))


def losses(parts: list[Part], order: Labels, solved: bool) -> Array:
    size = len(order)
    return Selection(tuple(parts), (np.ones(size), np.ones(size))).losses(order, solved)


@quick(12)
@given(
    seed=st.integers(0, 99),
    groups=st.sampled_from([1, 1, 2]),
    size=st.integers(2, 4),
    width=st.integers(1, 2),
    kernel=st.sampled_from([1, 3]),
)
def test_losses_are_those_of_least_squares(
    seed: int, groups: int, size: int, width: int, kernel: int
) -> None:
    layer = conv(groups * size * width, 3 * groups, kernel, groups, seed)
    rows = patches(layer, seed=seed)
    positions = rng(seed).permutation(size * width).reshape(size, width)
    order = rng(seed, 1).permutation(size)
    whole = variance(layer, rows)
    found = losses(parts_of(layer, positions, exact(rows), 0.0), order, solved=True)
    assert found.shape == (size + 1,)
    for k in range(size + 1):
        error = least_squares(layer, rows, columns_of(layer, positions[order[:k]]))[0]
        np.testing.assert_allclose(found[k], error / whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [1, 2])
def test_unsolved_losses_are_those_of_what_is_dropped(groups: int, width: int) -> None:
    layer = conv(4 * width * groups, 6, 3, groups)
    rows = patches(layer)
    positions = np.arange(4 * width).reshape(4, width)[::-1]
    order = np.array([2, 0, 3, 1])
    found = losses(parts_of(layer, positions, exact(rows), 0.0), order, solved=False)
    for k in range(5):
        gone = columns_of(layer, positions[order[k:]])
        lost = sum(
            float(np.sum(np.var(x[:, gone] @ m[:, gone].T, axis=0)))
            for m, x in zip(layer.stage.matrices, rows, strict=True)
        )
        np.testing.assert_allclose(found[k], lost / variance(layer, rows), rtol=1e-4, atol=1e-6)
    solved = losses(parts_of(layer, positions, exact(rows), 0.0), order, solved=True)
    assert (solved[1:4] < found[1:4]).all()


def test_channels_of_others_are_projected_out() -> None:
    """A reader of a concatenation: what it reads of the other parts stays."""
    layer = conv(7, 5)
    rows = patches(layer)
    positions = np.array([[1], [4], [5]])
    order = np.array([1, 2, 0])
    found = losses(parts_of(layer, positions, exact(rows), 0.0), order, solved=True)
    rest = np.array([0, 2, 3, 6])
    for k in range(4):
        left = np.concatenate([rest, positions[order[:k], 0]])
        error = least_squares(layer, rows, columns_of(layer, left))[0]
        np.testing.assert_allclose(found[k], error / variance(layer, rows), rtol=1e-4, atol=1e-6)
    alone = [
        Part(p.sigma + 1.0 * np.eye(len(p.sigma)), p.weight, p.share, p.width)
        for p in parts_of(layer, positions, exact(rows), 0.0)
    ]
    assert losses(alone, order, True)[0] > found[0]


@pytest.mark.parametrize("groups", [1, 3])
def test_masked_rows_do_not_count(groups: int) -> None:
    layer = conv(4 * groups, 4 * groups, 3, groups)
    rows, order = patches(layer), np.array([3, 1, 0, 2])
    mask = rng(5).uniform(size=4 * groups) < 0.5
    mask[:2] = [True, False]
    positions = np.arange(4)[:, None]
    parts = parts_of(layer, positions, exact(rows), 0.0, mask)
    for k in range(4):
        patch, error = columns_of(layer, positions[order[:k]]), 0.0
        for m, x, counts in zip(layer.stage.matrices, rows, mask.reshape(groups, -1), strict=True):
            y = x @ m[counts].T
            inputs = np.concatenate([x[:, patch], np.ones((len(x), 1))], axis=1)
            fit = np.linalg.lstsq(inputs, y, rcond=None)[0]
            error += float(np.mean(np.sum((y - inputs @ fit) ** 2, axis=1)))
        got = losses(parts, order, True)[k]
        np.testing.assert_allclose(got, error / variance(layer, rows), rtol=1e-4, atol=1e-6)
    assert parts_of(layer, positions, exact(rows), 0.0, np.zeros(4 * groups, bool)) == []


def test_losses_of_readers_add_up_and_count_against_the_sum() -> None:
    layer = conv(5, 4)
    rows, order, positions = patches(layer), np.arange(5), np.arange(5)[:, None]
    moments = exact(rows)
    once = losses(parts_of(layer, positions, moments, 0.0), order, True)
    assert once[0] == pytest.approx(1.0, rel=1e-6)
    assert once[5] == 0.0
    total = 3 * variance(layer, rows)
    behind = parts_of(layer, positions, moments, total)
    np.testing.assert_allclose(losses(behind, order, True), once / 3, rtol=1e-5)
    np.testing.assert_allclose(losses(behind * 2, order, True), 2 * once / 3, rtol=1e-5)


def test_without_data_the_weights_count() -> None:
    layer = conv(4, 6)
    order, positions = np.array([2, 3, 1, 0]), np.arange(4)[:, None]
    squares = np.sum(layer.stage.weight**2, axis=(0, 2, 3))
    for solved in (True, False):
        found = losses(parts_of(layer, positions, Moments(), 0.0), order, solved)
        for k in range(5):
            wanted = squares[order[k:]].sum() / squares.sum()
            np.testing.assert_allclose(found[k], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_solved_weights_are_those_of_least_squares(groups: int) -> None:
    layer = conv(5 * groups, 4 * groups, 3, groups)
    rows, kept = patches(layer), np.array([0, 2, 3])
    weight, bias = solved_weights(layer, kept, exact(rows), 1e-12)
    _, wanted, constants = least_squares(layer, rows, columns_of(layer, kept))
    assert weight.shape == (4 * groups, 3, 3, 3)
    np.testing.assert_allclose(weight.reshape(wanted.shape), wanted, rtol=1e-3, atol=1e-4)
    assert layer.stage.bias is not None
    assert bias is not None
    np.testing.assert_allclose(bias, constants + layer.stage.bias, rtol=1e-3, atol=1e-4)


def test_solved_weights_of_a_twin_channel_lose_nothing() -> None:
    layer = conv(4, 6)
    rows = patches(layer).reshape(1, -1, 4, 9)
    rows[:, :, 3] = 0.5 * rows[:, :, 0] - 2 * rows[:, :, 2] + 1
    flat = rows.reshape(1, -1, 36)
    kept = np.arange(3)
    weight, bias = solved_weights(layer, kept, exact(flat), 1e-9)
    assert bias is not None
    assert layer.stage.bias is not None
    y = flat[0] @ layer.stage.matrices[0].T + layer.stage.bias
    again = rows[0, :, :3].reshape(-1, 27) @ weight.reshape(6, -1).T + bias
    np.testing.assert_allclose(again, y, rtol=1e-3, atol=1e-3)
    found = losses(parts_of(layer, np.arange(4)[:, None], exact(flat), 0.0), np.arange(4), True)
    assert found[3] == pytest.approx(0.0, abs=1e-6)
    assert found[2] > 1e-3


def test_solved_weights_without_data_are_those_at_hand() -> None:
    layer = conv(5, 4)
    weight, bias = solved_weights(layer, np.array([1, 4]), Moments(), 1e-6)
    np.testing.assert_array_equal(weight, layer.stage.weight[:, [1, 4]])
    assert layer.stage.bias is not None
    assert bias is not None
    np.testing.assert_array_equal(bias, layer.stage.bias)


def test_silent_channels_are_no_obstacle() -> None:
    """A covariance with null directions has a loss all the same."""
    layer = conv(4, 3)
    rows = patches(layer).reshape(1, -1, 4, 9)
    rows[:, :, 1] = 0.7
    flat = rows.reshape(1, -1, 36)
    found = losses(
        parts_of(layer, np.arange(4)[:, None], exact(flat), 0.0), np.array([0, 2, 3, 1]), True
    )
    assert np.isfinite(found).all()
    assert found[3] == pytest.approx(0.0, abs=1e-9)
    assert found[2] > 1e-3
