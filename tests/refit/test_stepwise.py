"""A model that is run step by step gives what it gives at once, and stores nothing twice."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.array_store import ArrayStore
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.refit.stepwise import Walker
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm

STEPS, WIDTH, BATCHES, SIZE = 6, 8, 3, 4
BYTES = 4 * WIDTH * SIZE
X = fm.float32(np.random.default_rng(0).standard_normal((BATCHES * SIZE, WIDTH)))


@pytest.mark.parametrize("memory", [0, 2 * BYTES, 10**6])
def test_steps_give_what_the_whole_gives(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h0"])]
    weights = {}
    for i in range(1, STEPS):  # the first tensor is read at every step, as a skip branch is
        weights[f"w{i}"] = fm.float32(np.random.default_rng(i).standard_normal((WIDTH, WIDTH)))
        nodes += [
            helper.make_node("MatMul", [f"h{i - 1}", f"w{i}"], [f"p{i}"]),
            helper.make_node("Add", [f"p{i}", "h0"], [f"h{i}"]),
        ]
    tensors = [f"h{i}" for i in range(STEPS)]
    outputs = {t: ["N", WIDTH] for t in tensors}
    model = load(fm.build(nodes, {"x": ["N", WIDTH]}, outputs, weights))
    data = fm.dataset(model.proto, {"x": X})
    wanted = Runtime().session(model).run({"x": X})

    written: list[int] = []
    write = ArrayStore.write

    def recorded(store: ArrayStore, values: np.ndarray) -> object:  # type: ignore[type-arg]
        slot = write(store, values)
        written.append(slot.offset)
        return slot

    monkeypatch.setattr(ArrayStore, "write", recorded)
    walker = Walker(Graph(model), data, SIZE, Runtime(), memory)
    walker.plan([(t,) for t in tensors], [() for _ in tensors])
    for tensor in tensors:
        made = [batch[tensor] for batch in walker.advance()]
        assert len(made) == BATCHES
        np.testing.assert_allclose(np.concatenate(made), wanted[tensor], rtol=1e-4, atol=1e-5)
    if memory == 0:
        # h0 once, and the other tensors one after another: each takes the place of one before
        assert len(written) == BATCHES * (STEPS - 1)
        assert len(set(written)) <= BATCHES * 2 + 1
    assert not written or memory < 10**6
