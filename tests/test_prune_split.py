from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from onnx_lowrank import prune_split
from onnx_lowrank.base import Factorization, Pruning
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import Layer
from onnx_lowrank.model import Model, load
from onnx_lowrank.preparation import measured_shapes, prepare
from onnx_lowrank.progress import Progress
from onnx_lowrank.prune_split import SHARES, share_budget
from onnx_lowrank.pruning import Kept, Pruner
from onnx_lowrank.registry import parse_list
from onnx_lowrank.run_data import gather
from tests import fixtures_models as fm

Case = tuple[Pruner, float]


class Split:
    """A net whose budget is to be shared."""

    def __init__(self, passes: str = "spatial_svd,channel_svd,prune_channels") -> None:
        chosen = parse_list(passes)
        self.factorizations: Sequence[Factorization] = chosen.factorizations
        self.pruning: Pruning = chosen.prunings[0]
        source = load(fm.residual_net(16))
        self.data = gather(source, {"x": fm.pictures(60)}, None, None, None, 0)
        self.prepared = prepare(
            source, self.data, fm.ONE_THREAD, lambda _: None, 0, Progress(), every_shape=True
        )
        self.pruner = Pruner(self.prepared, self.pruning, "macs", Progress())

    def measure(
        self, model: Model, graph: Graph, layers: Sequence[Layer]
    ) -> Mapping[str, tuple[int, ...]]:
        return measured_shapes(model, graph, layers, self.data.validation, fm.ONE_THREAD)

    def share(self, ratio: float) -> Kept:
        return share_budget(
            self.pruner, self.prepared, self.factorizations, ratio * self.pruner.cost,
            f"macs={ratio:g}", self.measure, "macs",
        )  # fmt: skip

    def loss(self, kept: Kept, pruned: float, budget: float) -> float:
        rest = prune_split._rest(
            self.pruner, self.prepared, kept, self.factorizations, budget, self.measure, "macs"
        )
        return pruned + rest


@pytest.mark.parametrize("ratio", [0.35, 0.6])
def test_the_share_of_least_loss_is_taken(ratio: float) -> None:
    case = Split()
    budget = ratio * case.pruner.cost
    found: list[tuple[float, dict[str, int]]] = []
    for share in SHARES:
        try:
            kept, pruned = case.pruner.plan(
                case.pruner.cost - share * (case.pruner.cost - budget), "test"
            )
            total = case.loss(kept, pruned, budget) if share < 1 else pruned
        except BudgetError:
            continue
        found.append((total, {n: len(k) for n, k in kept.items()}))
    losses = [loss for loss, _ in found]
    assert len(losses) >= 3
    assert max(losses) > 1.05 * min(losses)
    taken = {n: len(k) for n, k in case.share(ratio).items()}
    assert taken == found[losses.index(min(losses))][1]


def test_where_factorization_cannot_pruning_does_all() -> None:
    """Of Gemm layers alone, svd would do; there are none here."""
    case = Split("svd,prune_channels")
    kept = case.share(0.5)
    alone, _ = case.pruner.plan(0.5 * case.pruner.cost, "test")
    assert {n: k.tolist() for n, k in kept.items()} == {n: k.tolist() for n, k in alone.items()}


def test_where_nothing_is_to_be_saved_nothing_goes() -> None:
    assert Split().share(1.0) == {}


def test_a_budget_that_no_share_meets() -> None:
    with pytest.raises(BudgetError):
        Split("svd,prune_channels").share(0.001)
