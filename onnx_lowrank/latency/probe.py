"""Probes: small models in which one layer, or a chain in its place, runs as in its network.

A layer is cut out of its graph with what the runtime fuses into it: a residual Add, an activation.
Several copies with weights of their own stand side by side in a *probe*, so that the call of the
session weighs little and the weights are as cold in the caches as in a network:

    x -> [depthwise 1x1 -> layer or chain -> (+ skip) -> (activation) -> mean over positions] * k

The convolutions in front leave their output in the runtime's own layout (NCHWc), and the means read
it, so only a chain that needs another layout pays for the change. The cost of the convolutions and
means is the same for all chains of a place, and drops out of all differences.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.time_model import BLOCK, workload
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers import PlacedLayer, destination, find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.session import Feed

__all__ = ["Place", "chain_key", "place_of", "probe"]

Array = npt.NDArray[np.floating[Any]]

#: activations that runtimes compute together with the layer in front of them
_ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "PRelu",
     "Gelu", "Softplus", "ThresholdedRelu"}
)  # fmt: skip

#: smallest and largest number of copies in a probe
_COPIES = (1, 8)
#: workload of all copies together, in MACs
_WORKLOAD = 40_000_000
#: largest size of the weights of all copies, in bytes
_BYTES = 16 << 20


@dataclass(frozen=True)
class Place:
    """A layer cut out of its network, with the nodes that are computed together with it.

    Attributes:
        key: digest that is equal for places that take equal times, whatever their names and
            weights.
        stage: the layer as a stage; its weights do not count.
        shape: shape of its input, over the whole batch.
        model: the layer, its residual Add and its activation, as a model.
        itemsize: size of one number that the layer makes, in bytes.
        inputs: inputs of the model with their shapes, the layer's own input first.
        output: name of the output of the layer itself.
    """

    key: str
    stage: Stage
    shape: tuple[int, ...]
    model: Model
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    output: str
    itemsize: int

    @property
    def chain(self) -> Chain:
        """The layer as it is, as a chain."""
        return Chain((self.stage,))

    @property
    def copies(self) -> int:
        """Number of copies in a probe."""
        wanted = _WORKLOAD // max(workload(self.chain, self.shape), 1)
        room = _BYTES // max(self.stage.parameters * 4, 1)
        return max(min(wanted, room, _COPIES[1]), _COPIES[0])


def place_of(graph: Graph, layer: PlacedLayer, shapes: Mapping[str, tuple[int, ...]]) -> Place:
    """Cut the place of ``layer`` out of ``graph``.

    Args:
        graph: the canonical network.
        layer: a layer of it.
        shapes: shapes of its tensors at the batch size to measure. The shape of the layer's input
            must be among them; others are derived where they are missing.
    """
    nodes, end = list(layer.nodes), layer.output
    if not layer.value.recurrent:
        end = _extended(graph, layer, nodes)
    made = {t.name for n in nodes for t in n.outputs}
    read = dict.fromkeys([layer.input, *(t.name for n in nodes for t in n.inputs)])
    names = [n for n in read if n and n not in made and not graph.is_constant(n)]
    shape = tuple(shapes[layer.input])
    stage = layer.value.outline
    result = tuple(stage.output_shape(shape))
    element = int(helper.np_dtype_to_tensor_dtype(layer.value.dtype))
    types, inputs = dict.fromkeys(names, element), {layer.input: shape}
    if layer.value.lookup:
        types[layer.input] = TensorProto.INT64
    for name in names[1:]:
        inputs[name] = tuple(shapes.get(name, result))
    if layer.value.recurrent:
        for position, name in enumerate(t.name for t in layer.nodes[0].inputs):
            if position > 3 and name in inputs:
                types[name] = TensorProto.INT32 if position == 4 else element
                inputs[name] = tuple(shapes.get(name, _state_shape(layer, shape, position)))
    model = graph.extract(types, [end])
    for value in model.proto.graph.input:
        if value.name in types:
            name = value.name
            value.CopyFrom(helper.make_tensor_value_info(name, types[name], inputs[name]))
    shaped = tuple(inputs.items())
    key, size = _place_key(model, shaped), layer.value.dtype.itemsize
    return Place(key, stage, shape, model, shaped, layer.output, size)


def chain_key(chain: Chain) -> str:
    """Text that is equal for chains that are written as nodes of the same shapes."""
    return ">".join(_step_key(s) for s in chain.stages)


def probe(place: Place, chain: Chain, seed: int) -> tuple[Model, Feed]:
    """Make a probe: copies of ``chain`` in ``place`` with random weights, and inputs for them."""
    random = np.random.default_rng(seed)
    whole = onnx.ModelProto(ir_version=place.model.proto.ir_version)
    whole.opset_import.extend(place.model.proto.opset_import)
    whole.functions.extend(place.model.proto.functions)
    whole.graph.name = "probe"
    ends = []
    for copy in range(place.copies):
        graph = Graph(place.model)
        (layer,) = [x for x in find_layers(graph)[0] if x.output == place.output]
        apply_chain(graph, layer, _filled(chain, random))
        ends.append(_join(whole, graph.to_model().proto.graph, place, f"c{copy}_", random))
    known = {v.name: v for v in place.model.proto.graph.input}
    whole.graph.input.extend(known[n] for n, _ in place.inputs)
    whole.graph.output.extend(onnx.ValueInfoProto(name=e) for e in ends)
    return replace(place.model, proto=whole, path=None), _feed(known, place, random)


# -- places ---------------------------------------------------------------------------------------


def _extended(graph: Graph, layer: PlacedLayer, nodes: list[Node]) -> str:
    """Add to ``nodes`` the nodes that are computed together with the layer; return their output."""
    end = destination(graph, layer).total
    total = graph.producer(end)
    if end != layer.output and total is not None:
        nodes.append(total)
    follower = graph.consumers(end)
    if len(follower) == 1 and follower[0].op in _ACTIVATIONS and not graph.is_output(end):
        node = follower[0]
        inside = any(node is n for n in graph.nodes)
        constant = all(t.is_empty() or graph.is_constant(t.name) for t in node.inputs[1:])
        if inside and constant and node.inputs[0].name == end:
            nodes.append(node)
            end = str(node.outputs[0].name)
    return end


def _state_shape(layer: PlacedLayer, shape: Sequence[int], position: int) -> tuple[int, ...]:
    """Shape of an input of a recurrent node: lengths, an initial state, or peephole weights."""
    node = layer.nodes[0]
    hidden = int(node.attrs["hidden_size"])
    first = bool(node.attrs.get("layout", 0))  # whether the batch is the first axis
    batch = shape[0] if first else shape[1]
    if position == 4:
        return (batch,)
    if position == 7:
        return (layer.value.directions, 3 * hidden)
    return (
        (batch, layer.value.directions, hidden)
        if first
        else (layer.value.directions, batch, hidden)
    )


def _place_key(model: Model, inputs: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """Digest of operators, attributes and shapes, without names and large constants."""
    graph = model.proto.graph
    numbers = {name: f"input{i}{shape}" for i, (name, shape) in enumerate(inputs)}
    for tensor in graph.initializer:
        small = math.prod(tensor.dims) <= 4  # bounds of a Clip, a shape
        value = numpy_helper.to_array(tensor).tolist() if small and _inside(tensor) else ""
        numbers[tensor.name] = f"{tensor.data_type}{list(tensor.dims)}{value}"
    text = [str([(o.domain, o.version) for o in model.proto.opset_import])]
    types = {v.name: v.type.tensor_type.elem_type for v in graph.input}
    text += [str(types[name]) for name, _ in inputs]
    for node in graph.node:
        attributes = sorted(
            hashlib.sha256(a.SerializeToString(deterministic=True)).hexdigest()
            for a in node.attribute
        )
        operands = [numbers.get(i, "") for i in node.input]
        for output in node.output:
            numbers.setdefault(output, f"t{len(numbers)}")
        text.append(f"{node.domain}:{node.op_type}{operands}{attributes}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()[:20]


def _inside(tensor: TensorProto) -> bool:
    return tensor.data_location != TensorProto.EXTERNAL


def _step_key(step: Step) -> str:
    if isinstance(step, Stage):
        return f"{step.weight.shape}{'b' if step.bias is not None else ''}{step.geometry}"
    if isinstance(step, Select):
        return f"select {step.inputs}:{step.outputs}:{step.axis}"
    if isinstance(step, Branches):
        return f"[{'+'.join(chain_key(c) for c in step.chains)}]"
    if isinstance(step, TensorTrainStep):
        shapes = [c.shape for c in step.cores]
        return f"train {step.inputs}:{step.outputs}{shapes}{'b' if step.bias is not None else ''}"
    kind = f"{type(step).__name__} {step.inputs}:{step.outputs}:{step.groups}"
    return f"{kind}:{step.parameters}:{step.nodes}"


# -- probes ---------------------------------------------------------------------------------------


def _filled(chain: Chain, random: np.random.Generator) -> Chain:
    return Chain(tuple(_filled_step(s, random) for s in chain.stages))


def _filled_step(step: Step, random: np.random.Generator) -> Step:
    """The step with random weights; zeros and denormal numbers would take other times."""
    bias = getattr(step, "bias", None)
    if bias is not None:
        bias = random.normal(size=bias.shape)
    if isinstance(step, Stage):
        return replace(step, weight=_normal(step.weight.shape, random), bias=bias)
    if isinstance(step, Branches):
        return replace(step, chains=tuple(_filled(c, random) for c in step.chains))
    if isinstance(step, TensorTrainStep):
        return replace(step, cores=tuple(_normal(c.shape, random) for c in step.cores), bias=bias)
    return step


def _normal(shape: Sequence[int], random: np.random.Generator) -> Array:
    scale = 1 / math.sqrt(max(math.prod(shape[1:]), 1))
    values: Array = random.standard_normal(shape, np.float32) * np.float32(scale)
    return values


def _join(
    whole: onnx.ModelProto,
    part: onnx.GraphProto,
    place: Place,
    prefix: str,
    random: np.random.Generator,
) -> str:
    """Put one copy into the probe, between its neighbours; return the tensor at its end."""
    convolution = isinstance(place.stage.geometry, ConvGeometry)
    element = part.input[0].type.tensor_type.elem_type
    names: dict[str, str] = {"": ""}
    made: dict[tuple[int, ...], str] = {}
    for name, shape in place.inputs:
        names[name] = name
        if convolution and shape[1] % BLOCK == 0:
            if shape not in made:  # a skip branch of the same shape reads the layer's input
                made[shape] = f"{prefix}front{len(made)}"
                weight = random.uniform(0.5, 1.5, (shape[1], 1, *(1,) * (len(shape) - 2)))
                values = weight.astype(helper.tensor_dtype_to_np_dtype(element))
                whole.graph.initializer.append(
                    numpy_helper.from_array(values, f"{made[shape]}_weight")
                )
                whole.graph.node.append(
                    helper.make_node(
                        "Conv", [name, f"{made[shape]}_weight"], [made[shape]], group=shape[1]
                    )
                )
            names[name] = made[shape]
    for tensor in part.initializer:
        names[tensor.name] = prefix + tensor.name
        whole.graph.initializer.append(tensor)
        whole.graph.initializer[-1].name = prefix + tensor.name
    for node in part.node:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name = node.name and prefix + node.name  # nodes without a name stay so
        for output in node.output:
            names.setdefault(output, prefix + output)
        del copied.input[:], copied.output[:]
        copied.input.extend(names[i] for i in node.input)
        copied.output.extend(names[o] for o in node.output)
        whole.graph.node.append(copied)
    end = names[part.output[0].name]
    if convolution:
        whole.graph.node.append(helper.make_node("GlobalAveragePool", [end], [f"{prefix}mean"]))
        end = f"{prefix}mean"
    return end


def _feed(
    known: Mapping[str, onnx.ValueInfoProto], place: Place, random: np.random.Generator
) -> Feed:
    feed = {}
    for name, shape in place.inputs:
        element = known[name].type.tensor_type.elem_type
        values: npt.NDArray[Any] = random.standard_normal(shape, np.float32)
        if element == TensorProto.INT32:  # lengths of sequences
            values = np.full(shape, 1)
        elif element == TensorProto.INT64:  # rows of a table
            values = random.integers(0, place.stage.inputs, shape)
        feed[name] = values.astype(helper.tensor_dtype_to_np_dtype(element))
    return feed
