"""Graph: reading and editing the main graph of a model; no other module imports onnx-graphsurgeon.

Nodes are never changed in place: an edit removes nodes and inserts others that produce the same
tensors. So every node that no edit named is written back from its own protobuf, bit for bit, with
doc strings, metadata and attributes that no library needs to understand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto, numpy_helper

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.constant_folding import Constants
from onnx_lowrank.graph.heritage import Names, heir, inherited, renamed, with_annotations
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.graph.protos import edited, inferred_extents, overridable, part
from onnx_lowrank.modelfile.external_data import place
from onnx_lowrank.modelfile.model import SMALLEST_EXTERNAL, Model
from onnx_lowrank.modelfile.protobuf import (
    all_names,
    inner_nodes,
    readable,
    reads,
)
from onnx_lowrank.modelfile.scratch import Scratch

__all__ = ["Graph", "Node"]


gs.logger.G_LOGGER.severity = logging.CRITICAL + 1  # its errors are raised as well


class Graph:
    """The main graph of a model, with tensors linked to their nodes, and edits of it.

    Args:
        model: the model; it is read, and never changed.

    Raises:
        ModelError: the graph is inconsistent.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        source = model.proto.graph
        try:
            self._graph = gs.import_onnx(readable(model.proto))
        except (gs.util.exception.OnnxGraphSurgeonException, UnicodeDecodeError) as error:
            raise ModelError(f"the graph cannot be read: {error}") from error
        self._protos = {id(n): p for n, p in zip(self._graph.nodes, source.node, strict=True)}
        # keeps the ids above from being used again
        self._originals = list(self._graph.nodes)
        self._initializers = {t.name: t for t in source.initializer}
        self._overridable = overridable(model.proto)
        self._heritage = Names(model.homes)
        #: new nodes with what they take over; the node keeps its id from being used again
        self._annotations: dict[int, tuple[Node, NodeProto]] = {}
        self._tensors: dict[str, Any] = dict(self._graph.tensors())
        self._outputs = {o.name for o in source.output}
        self._names = all_names(model.proto)
        self._forgotten: set[str] = set()
        self._scratch = model.scratch or (Scratch() if model.large else None)
        #: constants of ours that are on disk
        self._spilled: dict[str, TensorProto] = {}
        self._constants = Constants(
            self.producer, self._dims, self._values, self._node_proto, self._constant_node,
            self.opset, self._overridable,
        )  # fmt: skip

    # -- reading ---------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """Nodes of the main graph, in topological order."""
        return list(self._graph.nodes)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs that a caller must feed (initializers excluded)."""
        return [i.name for i in self._graph.inputs]

    def input_types(self) -> dict[str, int]:
        """ONNX element types of :attr:`inputs`."""
        fed = set(self.inputs)
        return {
            i.name: i.type.tensor_type.elem_type
            for i in self.model.proto.graph.input
            if i.name in fed
        }

    @property
    def outputs(self) -> list[str]:
        """Names of the graph outputs."""
        return [o.name for o in self.model.proto.graph.output]

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self._graph.opset)

    def producer(self, tensor: str) -> Node | None:
        """The node that makes ``tensor``; None if none does."""
        found = self._tensors.get(tensor)
        return found.inputs[0] if found is not None and found.inputs else None

    def consumers(self, tensor: str) -> list[Node]:
        """Nodes that read ``tensor``, once for each use, including nodes inside subgraphs."""
        found = self._tensors.get(tensor)
        return list(found.outputs) if found is not None else []

    def is_output(self, tensor: str) -> bool:
        """Whether ``tensor`` is an output of the graph."""
        return tensor in self._outputs

    def rank(self, tensor: str) -> int | None:
        """Number of axes of ``tensor``; None where the model does not say."""
        found = self._tensors.get(tensor)
        shape = getattr(found, "shape", None)
        return None if shape is None else len(shape)

    def extents(self, tensor: str) -> tuple[int | None, ...] | None:
        """Extent of each axis of ``tensor``, None where it is dynamic; None if nothing is known.

        Extents that the model does not declare are inferred.
        """
        found = self._tensors.get(tensor)
        shape = getattr(found, "shape", None)
        inferred = self._inferred.get(tensor)
        if shape is None or (inferred is not None and len(inferred) != len(shape)):
            return inferred
        stated = [d if isinstance(d, int) and d >= 0 else None for d in shape]
        more = inferred or (None,) * len(stated)
        return tuple(i if s is None else s for s, i in zip(stated, more, strict=True))

    def attribute(self, node: Node, name: str, default: Any = None) -> Any:
        """An attribute of ``node``."""
        return node.attrs.get(name, default)

    def constant(self, tensor: str) -> npt.NDArray[Any] | None:
        """The value of ``tensor``; None where it is not constant, or cannot be computed.

        A tensor that follows from constants is one too; see :class:`Constants`.
        """
        return self._constants.value(tensor)

    def is_constant(self, tensor: str) -> bool:
        """Whether ``tensor`` is constant, without reading it."""
        return self._constants.known(tensor)

    def is_quantized(self, tensor: str) -> bool:
        """Whether ``tensor`` is computed from constants by a DequantizeLinear."""
        return self._constants.quantized(tensor)

    def overridable(self, tensor: str) -> str | None:
        """The initializer that ``tensor`` depends on and that is a graph input too; None without.

        A caller may feed another value for it; but for that, ``tensor`` would be constant.
        """
        return self._constants.overridden(tensor)

    def views(self, tensor: str) -> list[str]:
        """``tensor`` and the tensors it is computed from, to the constant with most elements."""
        return self._constants.views(tensor)

    def uses(self, tensor: str) -> int:
        """Number of nodes that read ``tensor``, or a tensor behind it if that is more."""
        own = {id(node) for node in self._constants.makers(tensor)}
        counts = [len(self.consumers(tensor))]
        for name in self.views(tensor)[1:]:
            counts.append(1 + sum(id(node) not in own for node in self.consumers(name)))
        return max(counts)

    def subgraph_nodes(self) -> Iterator[tuple[NodeProto, str]]:
        """Yield the nodes inside If, Loop, Scan and functions, each with the name of the place."""
        for node in self.model.proto.graph.node:
            yield from inner_nodes(node, node.name or node.op_type)
        for function in self.model.proto.functions:
            for node in function.node:
                yield node, f"function {function.name}"
                yield from inner_nodes(node, f"function {function.name}")

    # -- editing ---------------------------------------------------------------------------------

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
        self._tensors[name] = gs.Constant(name, self._kept(name, values))
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
        if name in self._initializers:
            raise ValueError(f"{name!r} belongs to the original model")
        self._tensors[name].values = self._kept(name, values)

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

    # -- writing ---------------------------------------------------------------------------------

    def to_model(self) -> Model:
        """Write the graph with all edits as a model; everything else is a copy of the original."""
        alive = {t.name for n in self._graph.nodes for t in n.outputs}
        used = self._used()
        final = self._heritage.final(used, used | alive | self._overridable)
        ours = {new: old for old, new in final.items()}

        def constant(name: str) -> TensorProto | None:
            if name not in ours:
                return self._constant_proto(name)
            tensor = self._constant_proto(ours[name])
            assert tensor is not None
            return heir(tensor, name, self._initializers.get(name))

        nodes = [
            p if id(n) in self._protos else renamed(p, final)
            for n in self._graph.nodes
            for p in [self._node_proto(n)]
        ]
        homes = self._heritage.homes(used, final)
        used = {final.get(name, name) for name in used}
        proto = edited(self.model.proto, nodes, used, alive, self._forgotten, constant)
        return Model(proto, self.model.folder, scratch=self._scratch, homes=homes)

    def extract(self, inputs: Mapping[str, int], outputs: Iterable[str]) -> Model:
        """Extract the part of the model between two sets of tensors as a model.

        Args:
            inputs: ONNX element types of the tensors to start from, by name.
            outputs: names of the tensors to compute; one that is an input itself is left out.
        """
        wanted = [o for o in dict.fromkeys(outputs) if o not in inputs]
        nodes = self._between(set(inputs), wanted)
        protos = [self._node_proto(n) for n in nodes]
        proto = part(self.model.proto, protos, inputs, wanted, self._constant_proto)
        return Model(proto, self.model.folder, scratch=self._scratch)

    def ancestors(self, tensors: Iterable[str], stop: Iterable[str] = ()) -> set[str]:
        """All tensors that must be computed for ``tensors``, including these."""
        nodes = self._between(set(stop), list(tensors))
        return {t.name for n in nodes for t in n.outputs if not t.is_empty()}

    def reads_between(self, stop: Iterable[str], tensors: Iterable[str]) -> set[str]:
        """All tensors that are read on the way from ``stop`` to ``tensors``."""
        return {r for n in self._between(set(stop), list(tensors)) for r in self.reads(n)}

    def reads(self, node: Node) -> set[str]:
        """Tensors that ``node`` and its subgraphs read."""
        return set(reads(self._node_proto(node)))

    def initializers(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Yield name, shape and ONNX element type of every initializer and Constant in use."""
        used = self._used()
        for name in sorted(used):
            tensor = self._tensors.get(name)
            if not isinstance(tensor, gs.Constant):
                continue
            proto = self._initializers.get(name)
            if proto is not None:
                yield name, tuple(proto.dims), proto.data_type
            else:
                values = tensor.values
                yield name, values.shape, onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
        for node in self._graph.nodes:
            if node.op == "Constant":
                values = self._constant_node(node)
                if values is not None and values.dtype.kind in "fiub":
                    element = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
                    yield node.outputs[0].name, values.shape, element

    # -- inside ----------------------------------------------------------------------------------

    @cached_property
    def _inferred(self) -> dict[str, tuple[int | None, ...]]:
        return inferred_extents(self.model.proto)

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
        tensor = self._initializers.get(root)
        if tensor is None and (node := self.producer(root)) is not None and node.op == "Constant":
            tensor = next((a.t for a in self._node_proto(node).attribute if a.HasField("t")), None)
        if tensor is not None and tensor.data_location == TensorProto.EXTERNAL:
            location = place(tensor).location
            if self._scratch is None or location != self._scratch.location:
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

    def _used(self) -> set[str]:
        used = {name for n in self._graph.nodes for name in self.reads(n)}
        return used | self._outputs

    def _between(self, stop: set[str], targets: Sequence[str]) -> list[Node]:
        needed: set[int] = set()
        seen: set[str] = set(stop)
        pending = list(targets)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            node = self.producer(name)
            if node is None or id(node) in needed:
                continue
            needed.add(id(node))
            pending.extend(self.reads(node))
        return [n for n in self._graph.nodes if id(n) in needed]

    def _node_proto(self, node: Node) -> NodeProto:
        proto = self._protos.get(id(node))
        if proto is not None:
            return proto
        made = onnx.helper.make_node(
            node.op,
            [t.name for t in node.inputs],
            [t.name for t in node.outputs],
            name=node.name,
            domain=node.domain or None,
            **node.attrs,
        )
        if id(node) in self._annotations:
            with_annotations(made, self._annotations[id(node)][1])
        return made

    def _constant_proto(self, name: str) -> TensorProto | None:
        """An initializer, of the original or new; None for other tensors."""
        if name in self._initializers:
            return self._initializers[name]
        if not isinstance(self._tensors.get(name), gs.Constant):
            return None
        return self._spilled.get(name) or numpy_helper.from_array(self._tensors[name].values, name)

    def _kept(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """``values`` in memory, or on disk where the model is large."""
        values = np.asarray(values, order="C")  # an array without axes stays one
        if self._scratch is None or values.nbytes < SMALLEST_EXTERNAL:
            self._spilled.pop(name, None)
            return values
        self._spilled[name] = self._scratch.add(name, values)
        return self._scratch.read(self._spilled[name])

    def _dims(self, name: str) -> tuple[int, ...] | None:
        """Shape of an initializer, of the original or new; None for other tensors."""
        if name in self._initializers:
            return tuple(self._initializers[name].dims)
        found = self._tensors.get(name)
        return tuple(found.shape) if isinstance(found, gs.Constant) else None

    def _values(self, name: str) -> npt.NDArray[Any] | None:
        if name in self._initializers:
            return self.model.read(self._initializers[name])
        found = self._tensors.get(name)
        if isinstance(found, gs.Constant) and isinstance(found._values, np.ndarray):
            return found._values
        return None  # sparse

    def _constant_node(self, node: Node) -> npt.NDArray[Any] | None:
        proto = self._protos.get(id(node))
        for attribute in proto.attribute if proto is not None else ():
            if attribute.name == "value":
                return self.model.read(attribute.t)
            if attribute.name in {"value_float", "value_int", "value_floats", "value_ints"}:
                value = onnx.helper.get_attribute_value(attribute)
                return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)
        return None


def _detach(node: Any) -> None:
    """Take a node of onnx-graphsurgeon off its tensors, which others may then make and read."""
    node.inputs.clear()
    node.outputs.clear()
