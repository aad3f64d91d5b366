"""The nodes inside If, Loop, Scan and local functions, laid out beside the main graph.

Shapes are only told of the main graph: by shape inference, and by a run. So a copy of every body is
put beside it with names of its own, fed with what its node is fed with: both branches of an If,
the first round of a Loop, the first slices of a Scan, each call of a function. The nodes that have
the bodies stay as they are; nothing reads the copies, which serve to learn shapes alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from onnx_lowrank.analysis.mac_formulas import DEFAULT_DOMAINS
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.protobuf import all_names

__all__ = ["Body", "Flat", "Rounds", "Step", "flatten"]

#: copies of nodes, and bodies within bodies, at the most: a small file could ask for any number
LARGEST, DEEPEST = 100_000, 32


@dataclass(frozen=True)
class Rounds:
    """How often the body of a Loop or Scan runs.

    Attributes:
        tensor: whose extent along ``axis`` is the number; empty if there is none.
        axis: of it.
        limit: tensor whose value is the number, where nothing ends the Loop before; empty if
            something may.
    """

    tensor: str = ""
    axis: int = 0
    limit: str = ""


@dataclass(frozen=True)
class Body:
    """One body of a node.

    Attributes:
        steps: its nodes; None where they were not laid out.
        rounds: how often it runs; None for once.
    """

    steps: tuple[Step, ...] | None
    rounds: Rounds | None = None


@dataclass(frozen=True)
class Step:
    """A node, of the main graph or copied from a body.

    Attributes:
        node: with the names that it has in the flat graph.
        original: as it stands in the file.
        bodies: what it runs.
        choice: whether it runs only one of its bodies.
    """

    node: NodeProto
    original: NodeProto
    bodies: tuple[Body, ...] = ()
    choice: bool = False

    @property
    def name(self) -> str:
        """What to call it: its name, else its first output, else its operator."""
        outputs = next((o for o in self.original.output if o), "")
        return str(self.original.name or outputs or self.original.op_type)


@dataclass
class Flat:
    """A model with its bodies laid out.

    Attributes:
        steps: nodes of the main graph, each with its bodies.
        nodes: copies of the nodes in bodies, in an order in which they can run.
        constants: initializers that these read, with the names that they have here.
        opsets: operator sets that only functions import.
    """

    model: Model
    steps: tuple[Step, ...] = ()
    nodes: list[NodeProto] = field(default_factory=list)
    constants: list[tuple[str, TensorProto]] = field(default_factory=list)
    opsets: list[onnx.OperatorSetIdProto] = field(default_factory=list)

    def to_model(self) -> Model:
        """The flat graph as a model; the model itself where it has no bodies."""
        if not self.nodes:
            return self.model
        proto = ModelProto()
        proto.CopyFrom(self.model.proto)
        proto.opset_import.extend(self.opsets)
        proto.graph.node.extend(self.nodes)
        for name, tensor in self.constants:
            copy = proto.graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = name
        return Model(proto, self.model.folder, scratch=self.model.scratch)


def flatten(model: Model) -> Flat:
    """Lay the bodies of a model out."""
    flat = Flat(model)
    known = {o.domain for o in model.proto.opset_import}
    for function in model.proto.functions:
        flat.opsets += [o for o in function.opset_import if o.domain not in known]
        known |= {o.domain for o in function.opset_import}
    flat.steps = _Layout(flat).steps(model.proto.graph.node, None, 0)
    return flat


class _Layout:
    """Lays bodies out in a flat graph."""

    def __init__(self, flat: Flat) -> None:
        self._flat = flat
        self._functions = {_key(f): f for f in flat.model.proto.functions}
        self._stem, self._count = "body", 0
        names = all_names(flat.model.proto)
        while any(name.startswith(self._stem) for name in names):
            self._stem += "_"

    def steps(
        self, nodes: Sequence[NodeProto], names: dict[str, str] | None, depth: int
    ) -> tuple[Step, ...]:
        """The nodes of a graph; where they have other ``names`` here, copies of them."""
        prefix = self._prefix() if names is not None else ""
        return tuple(self._step(node, names, prefix, depth) for node in nodes)

    def _prefix(self) -> str:
        self._count += 1
        return f"{self._stem}{self._count}/"

    def _step(
        self, original: NodeProto, names: dict[str, str] | None, prefix: str, depth: int
    ) -> Step:
        node = original
        if names is not None:
            names.update({o: prefix + o for o in original.output if o})
            value = _value(original)
            if value is not None:
                self._flat.constants.append((names[original.output[0]], value))
                return Step(original, original)
            node = _renamed(original, names)
            self._flat.nodes.append(node)
        scope = names if names is not None else {}
        function = self._functions.get(_key(node))
        graphs = {a.name: a.g for a in node.attribute if a.type == AttributeProto.GRAPH}
        if function is None and not graphs:
            return Step(node, original)
        inner = {a.name: a.g for a in original.attribute if a.type == AttributeProto.GRAPH}
        if depth >= DEEPEST or len(self._flat.nodes) > LARGEST:
            return Step(node, original, (Body(None),))
        if function is not None:
            return Step(node, original, (self._called(node, function, depth),))
        if node.domain in DEFAULT_DOMAINS:
            if node.op_type == "If":
                bodies = tuple(Body(self._graph(g, scope, {}, depth)) for g in inner.values())
                return Step(node, original, bodies, choice=True)
            if node.op_type == "Loop" and "body" in inner:
                return Step(node, original, (self._loop(node, inner["body"], scope, depth),))
            if node.op_type == "Scan" and "body" in inner:
                return Step(node, original, (self._scan(node, inner["body"], scope, depth),))
        # what runs its graph some other number of times
        body = self._graph(next(iter(inner.values())), scope, {}, depth)
        return Step(node, original, (Body(body, Rounds()),))

    def _graph(
        self, graph: GraphProto, outer: Mapping[str, str], fed: Mapping[str, str], depth: int
    ) -> tuple[Step, ...]:
        """Nodes of a subgraph, whose inputs are ``fed``."""
        prefix = self._prefix()
        names = {**outer, **{i.name: prefix + i.name for i in graph.input}}
        for tensor in graph.initializer:
            names[tensor.name] = prefix + tensor.name
            self._flat.constants.append((names[tensor.name], tensor))
        names.update(fed)
        return self.steps(graph.node, names, depth + 1)

    def _called(self, node: NodeProto, function: FunctionProto, depth: int) -> Body:
        given = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
        names = dict.fromkeys(function.input, "")
        names.update(zip(function.input, node.input, strict=False))
        nodes = [_bound(n, given) for n in function.node]
        return Body(self.steps(nodes, names, depth + 1))

    def _loop(
        self, node: NodeProto, graph: GraphProto, outer: Mapping[str, str], depth: int
    ) -> Body:
        states = len(graph.input) - 2
        number, going = self._constant(np.array(0)), self._constant(np.array(True))
        fed = dict(zip((i.name for i in graph.input), [number, going, *node.input[2:]],
                       strict=False))  # fmt: skip
        steps = self._graph(graph, outer, fed, depth)
        scanned = node.output[states] if len(node.output) > states else ""
        limit = node.input[0] if node.input and _endless(graph) else ""
        return Body(steps, Rounds(scanned, 0, limit))

    def _scan(
        self, node: NodeProto, graph: GraphProto, outer: Mapping[str, str], depth: int
    ) -> Body:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        scanned = int(attributes.get("num_scan_inputs", 0))
        states = len(node.input) - scanned
        if not scanned or len(graph.input) != len(node.input):
            return Body(None)  # as before opset 9, with a batch axis and lengths
        axes = list(attributes.get("scan_input_axes", [0] * scanned))
        fed = list(node.input[:states])
        first = self._constant(np.array(0))
        for name, axis in zip(node.input[states:], axes, strict=True):
            piece = f"{self._prefix()}slice"
            self._flat.nodes.append(
                helper.make_node("Gather", [name, first], [piece], axis=int(axis))
            )
            fed.append(piece)
        names = dict(zip((i.name for i in graph.input), fed, strict=True))
        steps = self._graph(graph, outer, names, depth)
        return Body(steps, Rounds(node.input[states], int(axes[0])))

    def _constant(self, value: np.ndarray) -> str:
        name = f"{self._prefix()}constant"
        self._flat.constants.append((name, numpy_helper.from_array(value, name)))
        return name


def _key(named: NodeProto | FunctionProto) -> tuple[str, str, str]:
    name = named.op_type if isinstance(named, NodeProto) else named.name
    domain = "" if named.domain in DEFAULT_DOMAINS else named.domain
    return domain, name, named.overload


def _value(node: NodeProto) -> TensorProto | None:
    """The tensor of a Constant node, which is not copied."""
    if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS:
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)


def _endless(graph: GraphProto) -> bool:
    """Whether the body of a Loop never says that it is the last round."""
    if not graph.output:
        return False
    going, wanted = graph.input[1].name, graph.output[0].name
    makers = {o: n for n in graph.node for o in n.output}
    while wanted in makers and makers[wanted].op_type in {"Identity", "Cast"}:
        wanted = makers[wanted].input[0]
    if wanted == going:
        return True
    value = next((t for t in graph.initializer if t.name == wanted), None)
    if value is None and wanted in makers:
        value = _value(makers[wanted])
    return value is not None and bool(numpy_helper.to_array(value).all())


def _renamed(node: NodeProto, names: Mapping[str, str]) -> NodeProto:
    """A copy that reads and makes tensors of other names; so do its subgraphs."""
    copy = NodeProto()
    copy.CopyFrom(node)
    _rename(copy, names)
    return copy


def _rename(node: NodeProto, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
            own |= {t.values.name for t in graph.sparse_initializer}
            own |= {name for n in graph.node for name in n.output}
            outer = {k: v for k, v in names.items() if k not in own}
            for inner in graph.node:
                _rename(inner, outer)
            for output in graph.output:
                output.name = outer.get(output.name, output.name)


def _bound(node: NodeProto, given: Mapping[str, AttributeProto]) -> NodeProto:
    """A node of a function with the attributes of the call in the place of references."""

    def references(nodes: Iterable[NodeProto]) -> bool:
        return any(
            a.ref_attr_name or references(n for g in (a.g, *a.graphs) for n in g.node)
            for n in nodes
            for a in n.attribute
        )

    if not references([node]):
        return node
    copy = NodeProto()
    copy.CopyFrom(node)

    def bind(inner: NodeProto) -> None:
        bound = []
        for attribute in inner.attribute:
            for graph in (attribute.g, *attribute.graphs):
                for deeper in graph.node:
                    bind(deeper)
            if not attribute.ref_attr_name:
                bound.append(attribute)
            elif (value := given.get(attribute.ref_attr_name)) is not None:
                made = AttributeProto()
                made.CopyFrom(value)
                made.name = attribute.name
                bound.append(made)
        kept = [AttributeProto.FromString(a.SerializeToString()) for a in bound]
        del inner.attribute[:]
        inner.attribute.extend(kept)

    bind(copy)
    return copy
