from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.analysis.collect import collect_moments
from onnx_lowrank.analysis.cost import layer_cost, tensor_shapes
from onnx_lowrank.analysis.moments import Moments, relative_error, response_error
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.analysis.time_model import time_in_macs
from onnx_lowrank.chains.chain import Chain
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.linalg.row_shares import row_shares
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.planning.sharing import pooled
from onnx_lowrank.samples.dataset import Dataset
from tests import fixtures_models as fm
from tests.fixtures_text import ROWS, WIDTH, looked_up, readings, table, text_net
from tests.support import only_layer, rng

IDS, NET = readings(40), text_net()


def collected(data: Any, memory: int = 10**9, proto: ModelProto = NET) -> Any:
    graph = Graph(load(proto))
    layers = find_layers(graph)[0]
    shapes = tensor_shapes(load(proto), {"ids": (1, 10)})
    samples: Dataset = fm.dataset(proto, data)
    return layers, collect_moments(graph, layers, samples, shapes, fm.streaming(memory))


@pytest.mark.parametrize("memory", [10**9, 40_000])
def test_the_rows_that_the_data_reads_are_counted(memory: int) -> None:
    layers, store = collected({"ids": IDS}, memory)
    found = store["words"]
    assert found.one_hot
    assert found.covariance is None
    assert found.count == IDS.size
    shares = row_shares(np.bincount(IDS.reshape(-1), minlength=ROWS))
    np.testing.assert_array_equal(found.mean, shares[None])
    assert "words" not in store.silent
    assert [la.name for la in layers] == list(store)


def test_an_error_counts_against_the_sum_that_the_rows_enter() -> None:
    proto = text_net()
    again = helper.make_node("Gather", ["other", "ids"], ["f"], name="again")
    proto.graph.node.insert(1, again)
    proto.graph.node[2].input[1] = "f"
    rows = table(rank=3)
    proto.graph.initializer.append(numpy_helper.from_array(rows, "other"))
    _, store = collected({"ids": IDS}, proto=proto)
    total = (table() + rows)[IDS].reshape(-1, WIDTH).astype(np.float64).var(axis=0).sum()
    assert store.totals["words"] == pytest.approx(total, rel=1e-4)
    assert store.totals["again"] == pytest.approx(total, rel=1e-4)


def test_counts_go_on_where_they_were() -> None:
    whole, first, second = RowCounts(ROWS), RowCounts(ROWS), RowCounts(ROWS)
    whole.update(IDS)
    first.update(IDS[:15])
    second.restore(first.state())
    second.update(IDS[15:])
    np.testing.assert_array_equal(whole.state()["counts"], second.state()["counts"])
    with pytest.raises(ValueError, match="counts"):
        RowCounts(ROWS + 1).restore(first.state())


def test_numbers_beyond_the_table_do_not_count() -> None:
    counts = RowCounts(5)
    counts.update(np.array([0, 4, -5, 5, -6, 99], np.int32))
    np.testing.assert_array_equal(counts.state()["counts"], [2, 0, 0, 0, 1])


def test_errors_are_those_of_the_dense_covariance() -> None:
    """``diag(p) - p p^T`` written out, on a table that it fits in memory for."""
    layer = only_layer(looked_up(table()))
    shares = row_shares(np.bincount(IDS.reshape(-1), minlength=ROWS))
    found = Moments(IDS.size, shares[None], one_hot=True)
    covariance = np.diag(shares) - np.multiply.outer(shares, shares)
    dense = Moments(IDS.size, shares[None], covariance[None])
    difference = rng(3).normal(size=(1, WIDTH, ROWS))
    wanted = response_error(difference, dense)
    assert response_error(difference, found) == pytest.approx(wanted, rel=1e-9)
    stage = layer.stage
    chain = Chain((stage.with_matrices(stage.matrices + 0.1 * difference, None),))
    wanted = relative_error(stage, chain, dense)
    assert relative_error(stage, chain, found) == pytest.approx(wanted, rel=1e-6)
    assert relative_error(stage, Chain((stage,)), found) == 0


def test_shares_of_several_lookups_are_those_of_all_readings() -> None:
    one, two = (RowCounts(ROWS) for _ in "ab")
    one.update(IDS[:10])
    two.update(IDS[10:])
    both = pooled([one.moments(), two.moments()])
    assert both.one_hot
    assert both.count == IDS.size
    assert both.mean is not None
    assert both.mean.sum() == pytest.approx(1)
    first, second = one.moments().mean, two.moments().mean
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(both.mean, (first + 3 * second) / 4)


def test_a_lookup_costs_numbers_and_no_macs() -> None:
    (layer,) = find_layers(Graph(load(looked_up(table()))))[0]
    cost = layer_cost(layer, {"ids": (1, 10)})
    assert (cost.macs, cost.parameters, cost.bytes) == (0, ROWS * WIDTH, 4 * ROWS * WIDTH)


def test_the_time_of_a_lookup_is_not_that_of_reading_the_table() -> None:
    small, large = (only_layer(looked_up(table(rows=rows))) for rows in (300, 3000))
    times = [time_in_macs(Chain((layer.outline,)), (1, 10)) for layer in (small, large)]
    assert times[0] == times[1]
