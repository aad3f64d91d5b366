"""Reading the main graph of a model: its nodes, tensors and constants, and parts of it."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto

from onnx_lowrank.errors import ModelError
from onnx_lowrank.graph.constant_folding import Constants
from onnx_lowrank.graph.initializers import Initializers
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.graph.protos import inferred_extents, overridable, part
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.protobuf import inner_nodes, readable, reads

__all__ = ["GraphReader"]


gs.logger.G_LOGGER.severity = logging.CRITICAL + 1  # its errors are raised as well

A = TypeVar("A")
B = TypeVar("B")


class GraphReader:
    """The main graph of a model, with tensors linked to their nodes.

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
        self._overridable = overridable(model.proto)
        self._tensors: dict[str, Any] = dict(self._graph.tensors())
        self._outputs = {o.name for o in source.output}
        self._stored = Initializers(model, self._tensors)
        self._constants = Constants(
            _weak(self.producer), self._stored.dims, self._stored.values, _weak(self._node_proto),
            _weak(self._constant_node), self.opset, self._overridable,
        )  # fmt: skip

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

    def extract(self, inputs: Mapping[str, int], outputs: Iterable[str]) -> Model:
        """Extract the part of the model between two sets of tensors as a model.

        Args:
            inputs: ONNX element types of the tensors to start from, by name.
            outputs: names of the tensors to compute; one that is an input itself is left out.
        """
        wanted = [o for o in dict.fromkeys(outputs) if o not in inputs]
        nodes = self._between(set(inputs), wanted)
        protos = [self._node_proto(n) for n in nodes]
        proto = part(self.model.proto, protos, inputs, wanted, self._stored.proto)
        return Model(proto, self.model.folder, scratch=self._stored.scratch)

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
            proto = self._stored.original(name)
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

    @cached_property
    def _inferred(self) -> dict[str, tuple[int | None, ...]]:
        return inferred_extents(self.model.proto)

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
        made: NodeProto = onnx.helper.make_node(
            node.op,
            [t.name for t in node.inputs],
            [t.name for t in node.outputs],
            name=node.name,
            domain=node.domain or None,
            **node.attrs,
        )
        return made

    def _constant_node(self, node: Node) -> npt.NDArray[Any] | None:
        proto = self._protos.get(id(node))
        for attribute in proto.attribute if proto is not None else ():
            if attribute.name == "value":
                return self.model.read(attribute.t)
            if attribute.name in {"value_float", "value_int", "value_floats", "value_ints"}:
                value = onnx.helper.get_attribute_value(attribute)
                return np.asarray(value, np.float32 if "float" in attribute.name else np.int64)
        return None


def _weak(method: Callable[[A], B]) -> Callable[[A], B]:
    """A method that its object can hold without referring to itself.

    Objects that do stay in memory, with their models, until Python looks for such circles.
    """
    weak = weakref.WeakMethod(method)

    def call(argument: A) -> B:
        found = weak()
        assert found is not None
        return found(argument)

    return call
