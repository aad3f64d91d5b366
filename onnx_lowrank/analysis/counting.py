"""Multiply-accumulates of a whole model, node by node, and the nodes that cannot be counted.

Counted from the graph and the shapes of its tensors, so that a written file can be counted
independently of the plan that made it. Nodes in functions count once for each call, those in Loop
and Scan once for each round (every round as the first), and of an If the branch with more MACs
counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx_lowrank.analysis.bodies import Body, Flat, Rounds, Step
from onnx_lowrank.analysis.mac_formulas import UnknownShapeError, formula_of, why_uncountable

__all__ = [
    "SHAPELESS",
    "Counts",
    "NodeCount",
    "Uncounted",
    "count",
    "limit_key",
    "tensors_to_measure",
]

Shapes = Mapping[str, tuple[int, ...]]

#: why a node with a formula is not counted
SHAPELESS = "its shapes are not known"
#: nodes that a message names
_NAMED = 4


@dataclass(frozen=True)
class NodeCount:
    """MACs of one node.

    Attributes:
        name: of the node, or of its first output.
        op: its operator.
        output: its first output, as it stands in the file.
        macs: multiply-accumulates, over all rounds of the loops around it.
        place: in which node's body it stands; empty for the main graph.
    """

    name: str
    op: str
    output: str
    macs: int
    place: str

    @property
    def main(self) -> bool:
        """Whether it stands in the main graph."""
        return not self.place

    def __str__(self) -> str:
        return f"{self.name} ({self.op}{f' in {self.place}' if self.place else ''})"


@dataclass(frozen=True)
class Uncounted:
    """A node whose MACs are in no total.

    Attributes:
        name: of the node, or of its first output.
        op: its operator.
        reason: why it is not counted.
        output: its first output, as it stands in the file.
    """

    name: str
    op: str
    reason: str
    output: str = ""

    @staticmethod
    def said(nodes: Sequence[Uncounted]) -> str:
        """One sentence about all of them; empty where there are none."""
        if not nodes:
            return ""
        named = ", ".join(f"{n.name} ({n.op}: {n.reason})" for n in nodes[:_NAMED])
        more = f", and {len(nodes) - _NAMED} more" if len(nodes) > _NAMED else ""
        many = "1 node is" if len(nodes) == 1 else f"{len(nodes)} nodes are"
        return f"MACs of {many} not counted: {named}{more}"


@dataclass(frozen=True)
class Counts:
    """MACs of a graph.

    Attributes:
        macs: of all nodes that can be counted.
        nodes: those that do products.
        uncounted: those that may do products, but cannot be counted.
        larger: names of If nodes of which the branch with more MACs was counted.
    """

    macs: int = 0
    nodes: tuple[NodeCount, ...] = ()
    uncounted: tuple[Uncounted, ...] = ()
    larger: tuple[str, ...] = ()

    def of(self, output: str, *, main: bool = True) -> int | None:
        """MACs of the node that makes ``output``, over all its calls; None where not counted."""
        if any(n.output == output for n in self.uncounted):
            return None
        return sum(n.macs for n in self.nodes if n.output == output and n.main == main)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.macs + other.macs,
            self.nodes + other.nodes,
            self.uncounted + other.uncounted,
            self.larger + other.larger,
        )

    def times(self, rounds: int) -> Counts:
        """The same, run so many times."""
        nodes = tuple(replace(n, macs=n.macs * rounds) for n in self.nodes)
        return replace(self, macs=self.macs * rounds, nodes=nodes)

    def unknown(self, reason: str) -> Counts:
        """The same with every node uncounted."""
        left = tuple(Uncounted(n.name, n.op, reason, n.output) for n in self.nodes)
        return Counts(0, (), (*left, *self.uncounted), self.larger)


def count(flat: Flat, shapes: Shapes) -> Counts:
    """Count a model.

    Args:
        flat: the model with its bodies laid out.
        shapes: of all its tensors (:func:`onnx_lowrank.analysis.cost.tensor_shapes`).
    """
    return _together([_count(step, shapes, "") for step in flat.steps])


def tensors_to_measure(flat: Flat) -> tuple[list[str], list[list[str]], list[str]]:
    """Tensors that the counts depend on.

    Returns:
        Tensors of the main graph whose shapes count, likewise those of each body in it (a branch
        that does not run must not hide the other), and tensors whose value is a number of rounds.
    """
    copied = {o for n in flat.nodes for o in n.output} | {name for name, _ in flat.constants}
    main, limits = _asked(flat.steps, deep=False)
    inside = []
    for body in (body for step in flat.steps for body in step.bodies):
        shaped, more = _asked(body.steps or (), deep=True)
        main |= dict.fromkeys(t for t in shaped if t not in copied)
        limits |= more
        if own := [t for t in shaped if t in copied]:
            inside.append(own)
    return list(main), inside, list(limits)


def _asked(steps: Iterable[Step], *, deep: bool) -> tuple[dict[str, None], dict[str, None]]:
    """Tensors of which nodes need the shape, and those of which Loops need the value."""
    shaped: dict[str, None] = {}
    limits: dict[str, None] = {}
    for step in steps:
        if not step.bodies and formula_of(step.node) is not None:
            shaped |= dict.fromkeys(t for t in (*step.node.input, *step.node.output) if t)
        for body in step.bodies:
            if body.rounds is not None and _contracts(body.steps or ()):
                shaped |= dict.fromkeys([body.rounds.tensor] if body.rounds.tensor else [])
                limits |= dict.fromkeys([body.rounds.limit] if body.rounds.limit else [])
            if deep:
                more, counts = _asked(body.steps or (), deep=True)
                shaped, limits = shaped | more, limits | counts
    return shaped, limits


def limit_key(tensor: str) -> str:
    """Name under which the value of a scalar stands among shapes, as ``(value,)``."""
    return f"value of {tensor}"


def _together(counts: Iterable[Counts]) -> Counts:
    found = list(counts)
    return Counts(
        sum(c.macs for c in found),
        tuple(n for c in found for n in c.nodes),
        tuple(n for c in found for n in c.uncounted),
        tuple(n for c in found for n in c.larger),
    )


def _contracts(steps: Iterable[Step]) -> bool:
    """Whether any of the nodes may do products, inside their bodies too."""
    return any(
        any(_contracts(b.steps or ()) for b in s.bodies) if s.bodies
        else formula_of(s.node) is not None or bool(why_uncountable(s.node))
        for s in steps
    )  # fmt: skip


def _count(step: Step, shapes: Shapes, place: str) -> Counts:
    if step.bodies:
        return _of_bodies(step, shapes)
    output = next((o for o in step.original.output if o), "")
    formula = formula_of(step.node)
    if formula is None:
        reason = why_uncountable(step.node)
        left = Uncounted(step.name, step.node.op_type, reason, output)
        return Counts(uncounted=(left,)) if reason else Counts()
    try:
        macs = formula(shapes)
    except UnknownShapeError:
        left = Uncounted(step.name, step.node.op_type, SHAPELESS, output)
        return Counts(uncounted=(left,))
    return Counts(macs, (NodeCount(step.name, step.node.op_type, output, macs, place),))


def _of_bodies(step: Step, shapes: Shapes) -> Counts:
    if any(body.steps is None for body in step.bodies):
        reason = "what it runs is too deep, or of a kind that is not looked into"
        output = next((o for o in step.original.output if o), "")
        return Counts(uncounted=(Uncounted(step.name, step.node.op_type, reason, output),))
    found = [_of_body(step, body, shapes) for body in step.bodies]
    if not step.choice:
        return _together(found)
    most = max(found, key=lambda c: c.macs)
    rest = tuple(n for c in found if c is not most for n in c.uncounted)
    said = (step.name,) if any(c.macs != most.macs for c in found) else ()
    return most + Counts(uncounted=rest, larger=said)


def _of_body(step: Step, body: Body, shapes: Shapes) -> Counts:
    place = f"{step.node.op_type} {step.name}"
    once = _together([_count(s, shapes, place) for s in body.steps or ()])
    if body.rounds is None:
        return once
    times = _rounds(body.rounds, shapes)
    if times is None:
        return once.unknown(
            f"it stands inside {step.node.op_type} {step.name}, whose number of rounds is not known"
        )
    return once.times(times)


def _rounds(rounds: Rounds, shapes: Shapes) -> int | None:
    value = shapes.get(limit_key(rounds.limit)) if rounds.limit else None
    if value is not None:
        return max(value[0], 0)
    shape = shapes.get(rounds.tensor) if rounds.tensor else None
    return shape[rounds.axis] if shape is not None and len(shape) > rounds.axis else None
