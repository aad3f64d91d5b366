"""Graph: reading and editing the main graph of a model; no other room imports onnx-graphsurgeon.

Nodes are never changed in place: an edit removes nodes and inserts others that produce the same
tensors. So every node that no edit named is written back from its own protobuf, bit for bit, with
doc strings, metadata and attributes that no library needs to understand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto

from onnx_lowrank.graph.heritage import Names, heir, inherited, renamed, with_annotations
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.graph.protos import edited
from onnx_lowrank.graph.reading import GraphReader
from onnx_lowrank.modelfile.external_data import place
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.protobuf import all_names

__all__ = ["Graph"]


class Graph(GraphReader):
    """The main graph of a model, with tensors linked to their nodes, and edits of it.

    Args:
        model: the model; it is read, and never changed.

    Raises:
        ModelError: the graph is inconsistent.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self._heritage = Names(model.homes)
        #: new nodes with what they take over; the node keeps its id from being used again
        self._annotations: dict[int, tuple[Node, NodeProto]] = {}
        self._names = all_names(model.proto)
        self._forgotten: set[str] = set()

    def fresh(self, stem: str) -> str:
        """Return a new name that nothing in the model has yet."""
        name, count = stem, 1
        while name in self._names:
            name, count = f"{stem}_{count}", count + 1
        self._names.add(name)
        return name

    def add_constant(self, stem: str, values: npt.NDArray[Any], origin: str = "") -> str:
        """Add an initializer and return its name.

        Args:
            stem: beginning of its name.
            values: its values.
            origin: name of the constant that it is derived from, whose file it is to be stored in;
                empty without one.
        """
        name = self.fresh(stem)
        self._heritage.settle(name, self._home(origin))
        self._tensors[name] = gs.Constant(name, self._stored.keep(name, values))
        return name

    def renew_constant(self, origin: str, values: npt.NDArray[Any], stem: str = "") -> str:
        """Add an initializer that replaces the constant ``origin`` for a node.

        If nothing reads ``origin`` when the model is written, it is written under that name, with
        the doc string and the metadata of the old one; otherwise it has the name returned.
        """
        name = self.add_constant(stem or origin, values, origin)
        self._heritage.claim(name, origin)
        return name

    def set_constant(self, name: str, values: npt.NDArray[Any]) -> None:
        """Set the values of an initializer that :meth:`add_constant` made."""
        if self._stored.original(name) is not None:
            raise ValueError(f"{name!r} belongs to the original model")
        self._tensors[name].values = self._stored.keep(name, values)

    def make_node(
        self,
        op: str,
        name: str,
        inputs: Sequence[str],
        output: str | Sequence[str],
        attrs: Mapping[str, Any] | None = None,
    ) -> Node:
        """Make a node for :meth:`replace`; ``output`` may be a tensor of a node that is replaced.

        An empty name stands for an operand or output that is left out.
        """
        outputs = [output] if isinstance(output, str) else output
        made: Node = gs.Node(
            op,
            name,
            attrs=dict(attrs or {}),
            inputs=[self._tensor(i) if i else gs.Variable.empty() for i in inputs],
            outputs=[self._tensor(o) if o else gs.Variable.empty() for o in outputs],
        )
        return made

    def replace(self, old: Sequence[Node], make: Callable[[], Sequence[Node]]) -> None:
        """Remove the nodes ``old`` and insert those that ``make`` returns in place of the last one.

        ``make`` runs once the outputs of ``old`` are free to be produced again.
        """
        position = max(self._index(n) for n in old)
        inputs = [t.name for n in old for t in n.inputs]
        protos = [self._node_proto(n) for n in old]
        for node in old:
            _detach(node)
        new = list(make())
        for node in new:
            self._take_over(node, protos, {n.op for n in new})
        self._constants.forget()
        self._graph.nodes[position + 1 : position + 1] = new
        for node in old:
            del self._graph.nodes[self._index(node)]
        for name in inputs:
            self._drop_dead(name)

    def change(
        self, node: Node, inputs: Mapping[int, str], attrs: Mapping[str, Any] | None = None
    ) -> None:
        """Replace ``node`` by one that reads other tensors.

        Args:
            node: the node to change.
            inputs: names of tensors by position; positions beyond the last input are appended.
            attrs: values of attributes to set; None removes an attribute.
        """
        names = [t.name for t in node.inputs]
        names += [""] * (max([-1, *inputs]) + 1 - len(names))
        for index, name in inputs.items():
            names[index] = name
        outputs = list(node.outputs)
        changed = {**node.attrs, **(attrs or {})}

        def make() -> list[Node]:
            operands = [self._tensor(n) if n else gs.Variable.empty() for n in names]
            kept = {k: v for k, v in changed.items() if v is not None}
            return [gs.Node(node.op, node.name, kept, operands, outputs, domain=node.domain)]

        self.replace([node], make)

    def insert(self, node: Node, make: Callable[[], Node]) -> None:
        """Insert the node that ``make`` returns before ``node``, with the latter's annotations."""
        new = make()
        self._take_over(new, [self._node_proto(node)], ())
        self._graph.nodes.insert(self._index(node), new)
        self._constants.forget()

    def forget_shape(self, tensor: str) -> None:
        """Drop the declared shape of ``tensor``, which an edit has changed."""
        self._forgotten.add(tensor)

    def to_model(self) -> Model:
        """Write the graph with all edits as a model; everything else is a copy of the original."""
        alive = {t.name for n in self._graph.nodes for t in n.outputs}
        used = self._used()
        final = self._heritage.final(used, used | alive | self._overridable)
        ours = {new: old for old, new in final.items()}

        def constant(name: str) -> TensorProto | None:
            if name not in ours:
                return self._stored.proto(name)
            tensor = self._stored.proto(ours[name])
            assert tensor is not None
            return heir(tensor, name, self._stored.original(name))

        nodes = [
            p if id(n) in self._protos else renamed(p, final)
            for n in self._graph.nodes
            for p in [self._node_proto(n)]
        ]
        homes = self._heritage.homes(used, final)
        used = {final.get(name, name) for name in used}
        proto = edited(self.model.proto, nodes, used, alive, self._forgotten, constant)
        return Model(proto, self.model.folder, scratch=self._stored.scratch, homes=homes)

    def _tensor(self, name: str) -> Any:
        if name not in self._tensors:
            self._tensors[name] = gs.Variable(name)
        return self._tensors[name]

    def _take_over(self, node: Node, old: Sequence[NodeProto], new_ops: Collection[str]) -> None:
        if id(node) not in self._annotations:
            self._annotations[id(node)] = node, inherited(node.op, old, new_ops)

    def _home(self, origin: str) -> str:
        """Name of the file with the values of a constant; empty for the model file."""
        if not origin:
            return ""
        root = self.views(origin)[-1]
        tensor = self._stored.original(root)
        if tensor is None and (node := self.producer(root)) is not None and node.op == "Constant":
            tensor = next((a.t for a in self._node_proto(node).attribute if a.HasField("t")), None)
        if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
            location = place(tensor).location
            if self._stored.scratch is None or location != self._stored.scratch.location:
                return location
        return self._heritage.home(root)

    def _index(self, node: Node) -> int:
        return next(i for i, n in enumerate(self._graph.nodes) if n is node)

    def _drop_dead(self, tensor: str) -> None:
        # remove only nodes that an edit made dead; dead nodes of the original stay
        pending = [tensor]
        while pending:
            name = pending.pop()
            if not name or self.is_output(name) or self.consumers(name):
                continue
            node = self.producer(name)
            if node is None or any(self.is_output(t.name) or t.outputs for t in node.outputs):
                continue
            pending += [t.name for t in node.inputs]
            _detach(node)
            del self._graph.nodes[self._index(node)]

    def _node_proto(self, node: Node) -> NodeProto:
        proto = super()._node_proto(node)
        if id(node) in self._annotations and id(node) not in self._protos:
            with_annotations(proto, self._annotations[id(node)][1])
        return proto


def _detach(node: Any) -> None:
    """Take a node of onnx-graphsurgeon off its tensors, which others may then make and read."""
    node.inputs.clear()
    node.outputs.clear()
