"""Checks that a target can be counted on a model, and the nodes that limit what is reachable."""

from __future__ import annotations

from collections import Counter

from onnx_lowrank.analysis.cost import Cost, layer_cost
from onnx_lowrank.analysis.counting import Uncounted
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.errors import BudgetError
from onnx_lowrank.planning.targets import Target

__all__ = ["check_countable", "fixed_nodes"]

#: number of nodes that a message names
_LISTED_NODES = 3

#: a message says nothing of fixed nodes that have less than this part of the model's MACs
_WORTH_NAMING = 0.01


def check_countable(target: Target, before: Cost, layers: int) -> None:
    """Refuse a target on a quantity that the model does not have or that cannot be counted.

    Args:
        target: the budgets to check; a rule for ranks is always accepted.
        before: cost of the original model.
        layers: number of layers that passes may replace.

    Raises:
        BudgetError: the model has no MACs, parameters or layers that the target could lower.
    """
    if target.rule is not None:
        return
    asked = dict(target.budgets)
    if "macs" in asked and not before.macs:
        left = Uncounted.said(before.uncounted) or "no node of it multiplies matrices"
        raise BudgetError(
            f"macs: no MACs of the model can be counted ({left}), so a part of them cannot be "
            "asked for; give --calib or --input-shape where shapes are not known, or a target "
            "on params, size or latency"
        )
    if "params" in asked and not before.parameters:
        raise BudgetError("params: the model has no parameters; give another target")
    if "latency" in asked and not layers:
        raise BudgetError(
            "latency: the model has no layer that a pass can replace, so no time can be saved; "
            "run `onnx-lowrank inspect` to see the reason for each node"
        )


def fixed_nodes(prepared: Prepared, whole: float) -> str:
    """Name the nodes that no pass can replace and that have most of the MACs.

    Args:
        prepared: the model as passes see it.
        whole: MACs of the original model.

    Returns:
        A clause for a message; empty where such nodes have less than 1% of the MACs.
    """
    movable = {
        next(t.name for t in layer.nodes[0].outputs if t.name): layer_cost(layer, prepared.shapes)
        for layer in prepared.layers
    }
    left: Counter[str] = Counter()
    for node in prepared.cost.counts.nodes:
        taken = movable[node.output].macs if node.main and node.output in movable else 0
        left[str(node)] += node.macs - taken
    total = sum(left.values())
    if not whole or total < _WORTH_NAMING * whole:
        return ""
    largest = [(name, macs) for name, macs in left.most_common(_LISTED_NODES) if macs > 0]
    named = ", ".join(f"{name} {macs / whole:.3f}" for name, macs in largest)
    count = sum(macs > 0 for macs in left.values())
    more = f" and {count - len(largest)} more" if count > len(largest) else ""
    return f"{total / whole:.3f} of the MACs are in nodes that no pass can replace: {named}{more}"
