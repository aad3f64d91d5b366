from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.layers import Layer
from onnx_lowrank.linalg.row_shares import row_shares
from onnx_lowrank.passes import EmbeddingSvd
from onnx_lowrank.passkit.base import Skip
from tests.fixtures_layers import LAYERS
from tests.fixtures_text import ROWS, WIDTH, looked_up, readings, table
from tests.support import (
    AnyArray,
    assert_outlined,
    bias_of,
    only_layer,
    quick,
    relative,
    replaced,
    rng,
    run,
)


def counted(ids: AnyArray, rows: int = ROWS) -> Moments:
    counts = RowCounts(rows)
    counts.update(ids)
    return counts.moments()


def proposed(layer: Layer, moments: Moments, metric: str = "covariance") -> Any:
    (form,) = EmbeddingSvd(metric).propose(layer, moments)
    return form


@pytest.fixture(scope="module")
def layer() -> Layer:
    return only_layer(looked_up(table()))


@pytest.fixture(scope="module")
def moments() -> Moments:
    return counted(readings(60))


# arrays


def test_it_takes_lookups_alone(layer: Layer) -> None:
    assert EmbeddingSvd().skips(layer) is None
    for case in LAYERS.values():
        assert isinstance(EmbeddingSvd().skips(only_layer(case.build(*case.numbers(0)))), Skip)


@pytest.mark.parametrize("metric", ["covariance", "identity"])
@pytest.mark.parametrize("data", [True, False])
def test_errors_and_outlines_are_those_of_the_cuts(
    layer: Layer, moments: Moments, metric: str, data: bool
) -> None:
    used = moments if data else Moments()
    form, errors = proposed(layer, used, metric), []
    for rank in (1, 4, 5, 16, WIDTH):
        chain = form.cut(rank)
        assert_outlined(form, rank, chain, layer)
        errors.append(relative_error(layer.stage, chain, used))
        assert form.error(rank) == pytest.approx(errors[-1], rel=1e-6, abs=1e-12)
    if data == (metric == "covariance"):
        assert errors == sorted(errors, reverse=True)
    with pytest.raises(ValueError, match="one rank"):
        form.cut((1, 1))


def test_ranks_are_aligned_and_finer_than_those_of_products() -> None:
    wide = only_layer(looked_up(table(rank=200, rows=300, width=200), ("N",)))
    ranks = list(proposed(wide, Moments()).ranks())
    assert ranks[:5] == [4, 8, 12, 16, 24]
    assert all(b - a <= 16 for a, b in pairwise(ranks))
    assert ranks[-1] == 192


def weighted_svd(values: AnyArray, shares: AnyArray, rank: int) -> AnyArray:
    """The best table of a rank, by the SVD of the table with every row times its share's root."""
    values = values.astype(np.float64)
    mean = shares @ values
    root = np.sqrt(shares)[:, None]
    left, sizes, right = np.linalg.svd(root * (values - mean), full_matrices=False)
    best: AnyArray = (left[:, :rank] * sizes[:rank]) @ right[:rank] / root + mean
    return best


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_it_is_the_svd_of_weighted_rows(layer: Layer, moments: Moments, rank: int) -> None:
    assert moments.mean is not None
    shares = moments.mean[0]
    wanted = weighted_svd(table(), shares, rank)
    chain = proposed(layer, moments).cut(rank)
    bias = bias_of(chain)
    assert bias is not None
    got = chain.compose().T + bias
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    # and its error is the sum over rows, each by its share
    centred = table() - shares @ table()
    lost = shares @ np.square(wanted - table()).sum(1) / (shares @ np.square(centred).sum(1))
    assert proposed(layer, moments).error(rank) == pytest.approx(lost, rel=1e-5)


@quick(25)
@given(st.integers(1, 8), st.integers(0, 99))
def test_no_other_table_of_the_rank_is_closer(rank: int, seed: int) -> None:
    made, found = only_layer(looked_up(table())), counted(readings(30, seed=seed))
    best = proposed(made, found)
    assert found.mean is not None
    other = rng(seed).normal(size=(WIDTH, rank))
    other = np.linalg.qr(other)[0]
    values = table().astype(np.float64)
    centred = values - found.mean[0] @ values
    left = centred - centred @ other @ other.T
    error = found.mean[0] @ np.square(left).sum(1) / (found.mean[0] @ np.square(centred).sum(1))
    assert best.error(rank) <= error + 1e-12


def test_a_table_of_low_rank_is_found_again(moments: Moments) -> None:
    planted = only_layer(looked_up(table(rank=5, noise=0.0)))
    form = proposed(planted, moments)
    assert form.max_rank == 5
    assert form.error(5) < 1e-12
    chain = form.cut(5)
    assert relative(table(rank=5, noise=0.0), chain.compose().T + bias_of(chain)) < 1e-6


def test_the_mean_row_stays(layer: Layer, moments: Moments) -> None:
    chain = proposed(layer, moments).cut(3)
    bias, shares = bias_of(chain), moments.mean
    assert bias is not None
    assert shares is not None
    assert relative(layer.stage.weight @ shares[0], chain.compose() @ shares[0] + bias) < 1e-9


def test_frequent_rows_are_kept_better_and_rows_never_read_are_not_lost() -> None:
    """One half of the rows spans other directions than the other, and is hardly ever read."""
    random = rng(1)
    halves = [random.normal(size=(ROWS // 2, 8)) @ random.normal(size=(8, WIDTH)) for _ in "ab"]
    values = np.concatenate(halves).astype(np.float32)
    ids = random.integers(0, ROWS // 2, 4000)
    ids[:40] = np.arange(40) + ROWS // 2  # the other 160 rows come never
    made, found = only_layer(looked_up(values)), counted(ids)

    def lost(form: Any, rank: int, rows: slice) -> float:
        chain = form.cut(rank)
        bias = bias_of(chain)
        new = chain.compose().T + (0 if bias is None else bias)
        return relative(values[rows], new[rows]) ** 2

    often, never = slice(0, ROWS // 2), slice(ROWS // 2 + 40, ROWS)
    weighed, plain = proposed(made, found), proposed(made, found, "identity")
    assert lost(weighed, 8, often) < 0.1 * lost(plain, 8, often)
    assert lost(weighed, 8, never) <= 1 + 1e-6  # nothing is put in the place of what is lost
    # with room to spare the directions of rows that never come are next
    assert lost(weighed, 16, never) < 1e-6


def test_large_numbers_in_half_precision_do_not_overflow(moments: Moments) -> None:
    """Tables are read as they are stored; squares of these are no float16."""
    loud = (1000 * table()).astype(np.float16)
    layer, quiet = only_layer(looked_up(loud)), only_layer(looked_up(table()))
    for used in (Moments(), moments):
        form, wanted = proposed(layer, used), proposed(quiet, used)
        assert form.error(8) == pytest.approx(wanted.error(8), rel=1e-2)
        assert relative_error(layer.stage, form.cut(8), used) == pytest.approx(form.error(8))


def test_a_table_of_zeros_stays_one(moments: Moments) -> None:
    dead = only_layer(looked_up(np.zeros((ROWS, WIDTH), np.float32)))
    form = proposed(dead, moments)
    assert form.error(4) == 0
    assert not form.cut(4).compose().any()


def test_cuts_are_repeated(layer: Layer, moments: Moments) -> None:
    one, two = (proposed(layer, moments).cut(7) for _ in "ab")
    for first, second in zip(one.stages, two.stages, strict=True):
        np.testing.assert_array_equal(first.weight, second.weight)


# ONNX Runtime

SHAPES: list[tuple[int | str, ...]] = [("N",), ("N", 10), ("N", 2, 5)]


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("element", [TensorProto.INT32, TensorProto.INT64])
def test_full_rank(opset: int, shape: tuple[int | str, ...], element: int) -> None:
    proto = looked_up(table(), shape, opset, element)
    ids = readings(3).reshape([-1, *shape[1:]])
    if opset >= 11:  # older ones know no negative numbers
        ids = np.where(ids % 3, ids, ids - ROWS)
    feed = {"ids": ids.astype(np.int32 if element == TensorProto.INT32 else np.int64)}
    layer = only_layer(proto)
    wanted = run(proto, feed)["y"]
    for moments in (Moments(), counted(ids)):
        again = replaced(proto, "words", proposed(layer, moments).cut(WIDTH))
        assert len(again.graph.node) > 1
        assert relative(wanted, run(again, feed)["y"]) < 1e-5


def test_onnx_runtime_computes_the_table_that_a_chain_says(layer: Layer, moments: Moments) -> None:
    chain = proposed(layer, moments).cut(6)
    again = replaced(looked_up(table()), "words", chain)
    ids = readings(5)
    bias = bias_of(chain)
    assert bias is not None
    wanted = (chain.compose().T + bias)[ids]
    assert relative(wanted, run(again, {"ids": ids})["y"]) < 1e-5
    assert [n.op_type for n in again.graph.node] == ["Gather", "MatMul", "Add"]
    sizes = {t.name: tuple(t.dims) for t in again.graph.initializer}
    assert sorted(sizes.values()) == [(6, WIDTH), (WIDTH,), (ROWS, 6)]


def test_shares_count_negative_numbers_from_the_end() -> None:
    ids = np.array([[0, -1], [5, -ROWS]])
    found = counted(ids)
    assert found.mean is not None
    counts = np.bincount([0, ROWS - 1, 5, 0], minlength=ROWS)
    np.testing.assert_array_equal(found.mean[0], row_shares(counts))
    assert found.count == 4
