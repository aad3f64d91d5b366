from __future__ import annotations

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.latency.probe import place_of, probe
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.passes import EmbeddingSvd
from tests import fixtures_models as fm
from tests.fixtures_text import ROWS, looked_up, table


def test_a_lookup_and_its_chain_run_in_their_place() -> None:
    """Fed with numbers of rows, and measured in bytes of what it makes."""
    graph = Graph(load(looked_up(table())))
    (layer,) = find_layers(graph)[0]
    place = place_of(graph, layer, {"ids": (2, 10)})
    assert place.itemsize == 4
    (form,) = EmbeddingSvd().propose(layer.value, Moments())
    for chain in (place.chain, form.outline(8)):
        model, feed = probe(place, chain, seed=0)
        assert feed["ids"].dtype == "int64"
        assert feed["ids"].shape == (2, 10)
        assert 0 <= feed["ids"].min() < feed["ids"].max() < ROWS
        assert fm.ONE_THREAD.session(model).run(feed)
