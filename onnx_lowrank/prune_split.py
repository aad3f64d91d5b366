"""One budget for pruning and factorization: how much of the saving is left to pruning.

Both lose response, in the same unit: the error of what a layer makes relative to what it ends up
in. So several shares are planned to the end, and the one of least predicted loss is taken. The
moments of the narrower layers are those of the original without the channels that go; slow methods
(whose every rank is a solution of its own) are left out of this, not of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnx_lowrank.base import Factorization
from onnx_lowrank.candidates import make_choices
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.graph import Graph
from onnx_lowrank.layers import Layer, find_layers
from onnx_lowrank.model import Model
from onnx_lowrank.moments import Moments
from onnx_lowrank.planner import allocate
from onnx_lowrank.preparation import Prepared
from onnx_lowrank.progress import Progress
from onnx_lowrank.pruning import Kept, Pruner

__all__ = ["share_budget"]

#: parts of the saving that pruning makes
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)

Shapes = Mapping[str, tuple[int, ...]]


def share_budget(
    pruner: Pruner,
    prepared: Prepared,
    factorizations: Sequence[Factorization],
    budget: float,
    what: str,
    measure: Callable[[Model, Graph, Sequence[Layer]], Shapes],
    metric: str,
) -> Kept:
    """Channels to keep, so that factorization makes up the rest with the least loss of both.

    Args:
        pruner: of the model.
        prepared: the model.
        factorizations: that follow.
        budget: on the cost of all layers.
        what: name of the budget, for errors.
        measure: shapes of the tensors of a model.
        metric: of the budget.

    Raises:
        BudgetError: no share meets it.
    """
    quick = [f for f in factorizations if not f.slow] or factorizations
    best: tuple[float, Kept] | None = None
    failure: BudgetError | None = None
    for share in SHARES:
        try:
            kept, loss = pruner.plan(pruner.cost - share * (pruner.cost - budget), what)
            if share < 1:
                loss += _rest(pruner, prepared, kept, quick, budget, measure, metric)
        except BudgetError as error:
            failure = error
            continue
        if best is None or loss < best[0]:
            best = loss, kept
    if best is None:
        assert failure is not None
        raise failure
    return best[1]


def _rest(
    pruner: Pruner,
    prepared: Prepared,
    kept: Kept,
    factorizations: Sequence[Factorization],
    budget: float,
    measure: Callable[[Model, Graph, Sequence[Layer]], Shapes],
    metric: str,
) -> float:
    """Predicted loss of factorizing what pruning leaves, within the whole budget."""
    graph = Graph(prepared.model)
    pruner.apply(graph, kept)
    model = graph.to_model()
    graph = Graph(model)
    known = {layer.name for layer in prepared.layers}
    layers = [layer for layer in find_layers(graph)[0] if layer.name in known]
    moments = pruner.moments(kept)
    for layer in layers:
        covariance = moments[layer.name].covariance
        if covariance is not None and len(covariance) != layer.groups:
            moments[layer.name] = Moments()  # depthwise: nobody takes it apart
    proposals = make_choices(
        layers, factorizations, moments, measure(model, graph, layers), metric,
        prepared.moments.totals, Progress(),
    )  # fmt: skip
    chosen = allocate(proposals.choices, int(budget))
    return sum(c.weight * p.error for c, p in zip(proposals.choices, chosen, strict=True))
