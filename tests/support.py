"""Tiny models, and ways to run and compare them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.chain import Chain, Rank, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, TensorTrainStep
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, PlacedLayer, find_layers, turned
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.passkit.base import Decomposition, Factorization
from onnx_lowrank.runtime.runtime import Runtime

Array = npt.NDArray[np.floating[Any]]
AnyArray = npt.NDArray[Any]

#: IR version that goes with an opset, for runtimes that insist
IR = {9: 4, 11: 6, 13: 7, 17: 8, 21: 10}


def quick(max_examples: int) -> settings:
    """Settings of a Hypothesis test; the profiles in ``conftest.py`` say how examples are drawn."""
    return settings(max_examples=max_examples)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    weights: Mapping[str, AnyArray],
    *,
    opset: int = 17,
    ir: int | None = None,
    element: int = TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> ModelProto:
    """A model from its nodes; the shapes of its outputs are inferred."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(n, element, s) for n, s in inputs.items()],
        [
            helper.make_tensor_value_info(n, element, weights[n].shape if n in weights else None)
            for n in outputs
        ],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=ir or IR[opset])
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(found)
    return model


def graph_of(proto: ModelProto) -> Graph:
    return Graph(Model(proto))


def placed_layers_of(proto: ModelProto) -> list[PlacedLayer]:
    return find_layers(graph_of(proto))[0]


def only_placed_layer(proto: ModelProto) -> PlacedLayer:
    (layer,) = placed_layers_of(proto)
    return layer


def layers_of(proto: ModelProto) -> list[Layer]:
    """The layers as passes see them."""
    return [layer.value for layer in placed_layers_of(proto)]


def only_layer(proto: ModelProto) -> Layer:
    (layer,) = layers_of(proto)
    return layer


def checked(graph: Graph) -> ModelProto:
    """The edited model, valid by the checker."""
    proto = graph.to_model().proto
    onnx.checker.check_model(proto)
    return proto


def run(proto: ModelProto, feed: Mapping[str, AnyArray]) -> dict[str, AnyArray]:
    """Outputs in ONNX Runtime, graph optimisations off."""
    return Runtime(threads=1).session(Model(proto), optimise=False).run(feed)


def replaced(proto: ModelProto, layer_name: str, chain: Chain) -> ModelProto:
    """The model with one layer replaced."""
    graph = graph_of(proto)
    (layer,) = [x for x in find_layers(graph)[0] if x.name == layer_name]
    apply_chain(graph, layer, chain)
    return checked(graph)


def rewritten_in_turn(
    source: Model, passes: Sequence[Factorization], largest: float = np.inf
) -> Iterator[Model]:
    """The model at full rank, again and again, until every layer has had each form of each pass.

    A layer that has fewer forms than others begins again.

    Args:
        source: the model; it is not changed.
        passes: what takes its layers apart.
        largest: layers of more parameters stay as they are.
    """
    forms = {
        layer.name: [
            form
            for p in passes
            if p.skips(layer.value) is None
            for form in p.propose(layer.value, Moments())
        ]
        for layer in find_layers(Graph(source))[0]
        if layer.stage.parameters <= largest
    }
    for turn in range(max(map(len, forms.values()), default=0)):
        graph = Graph(source)
        for layer in find_layers(graph)[0]:
            if able := forms.get(layer.name):
                form: Any = able[turn % len(able)]
                apply_chain(graph, layer, form.cut(form.max_rank))
        yield graph.to_model()


def bias_of(chain: Chain) -> Array | None:
    """The bias at the end of a chain; behind the step that has it channels only change places."""
    bias = None
    for step in chain.stages:
        if bias is not None:
            bias = step.dense(1).reshape(step.outputs, -1) @ bias
        bias = step.bias if step.bias is not None else bias
    return bias


def relative(wanted: AnyArray, got: AnyArray) -> float:
    """``||wanted - got|| / ||wanted||``; the error of a reconstruction."""
    assert wanted.shape == got.shape, (wanted.shape, got.shape)
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    distance = float(np.linalg.norm(wanted - got))
    return distance / norm if norm else distance


def random_moments(layer: Layer, seed: int, *, condition: float = 100.0) -> Moments:
    """Positive definite covariances of a given condition, and means, for the groups of a layer."""
    random, d = rng(seed, 7), layer.patch
    covariances = []
    for _ in range(layer.groups):
        q, _r = np.linalg.qr(random.normal(size=(d, d)))
        covariances.append((q * np.geomspace(1.0, 1.0 / condition, d)) @ q.T)
    return Moments(1000, random.normal(size=(layer.groups, d)), np.stack(covariances))


def conv_node(geometry: ConvGeometry, inputs: Sequence[str], output: str = "y") -> NodeProto:
    """A convolution of this geometry, independent of how the engine writes one."""
    padding: dict[str, Any] = {"auto_pad": geometry.auto_pad}
    if geometry.auto_pad == "NOTSET":
        padding["pads"] = geometry.pads
    if geometry.output_padding:
        padding["output_padding"] = geometry.output_padding
    return helper.make_node(
        "ConvTranspose" if geometry.transposed else "Conv",
        list(inputs),
        [output],
        name="conv",
        strides=geometry.strides,
        dilations=geometry.dilations,
        group=geometry.groups,
        **padding,
    )


def conv_model(
    geometry: ConvGeometry, weight: AnyArray, bias: AnyArray | None, **options: Any
) -> ModelProto:
    """One convolution from ``x`` to ``y``; ``weight`` as a stage has it."""
    channels = weight.shape[1] * geometry.groups
    if geometry.transposed:
        weight = turned(weight, geometry.groups)
    weights = {"w": weight} if bias is None else {"w": weight, "b": bias}
    shape = [None, channels, *[None] * geometry.axes]
    return make_model(
        [conv_node(geometry, ["x", *weights])], {"x": shape}, ["y"], weights, **options
    )


@st.composite
def geometries(
    draw: st.DrawFn, axes: tuple[int, ...] = (1, 2, 3), kernels: tuple[int, int] = (1, 3)
) -> ConvGeometry:
    """Convolutions that ONNX Runtime runs: it refuses SAME with dilations."""
    count = draw(st.sampled_from(axes))
    auto_pad = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))

    def each(low: int, high: int, length: int = count) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * length))

    return ConvGeometry(
        kernel=each(*kernels),
        strides=each(1, 3),
        dilations=(1,) * count if auto_pad.startswith("SAME") else each(1, 2),
        pads=each(0, 2, 2 * count) if auto_pad == "NOTSET" else (0,) * (2 * count),
        groups=draw(st.sampled_from([1, 1, 2, 3])),
        auto_pad=auto_pad,
    )


@st.composite
def transposed_geometries(draw: st.DrawFn) -> ConvGeometry:
    """Transposed convolutions, their gaps filled and their output not empty."""
    count = draw(st.sampled_from([1, 2]))

    def each(low: int, high: int, length: int = count) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * length))

    kernel, strides = each(2, 4), each(1, 3)
    return ConvGeometry(
        kernel=kernel,
        strides=strides,
        dilations=each(1, 2),
        pads=each(0, 2, 2 * count),
        groups=draw(st.sampled_from([1, 1, 2])),
        transposed=True,
        output_padding=tuple(draw(st.integers(0, s - 1)) for s in strides),
    )


def sizes(geometry: ConvGeometry, extra: int = 2) -> tuple[int, ...]:
    """Extents that the dilated kernel fits into, different on each axis."""
    return tuple(
        (k - 1) * d + extra + i
        for i, (k, d) in enumerate(zip(geometry.kernel, geometry.dilations, strict=True))
    )


def written(step: Step) -> tuple[Any, ...]:
    """All of a step but its numbers."""
    if isinstance(step, Branches):
        return (type(step), step.role, [[written(s) for s in c.stages] for c in step.chains])
    shapes: Any = None
    if isinstance(step, Stage):
        shapes = step.weight.shape
    elif isinstance(step, TensorTrainStep):
        shapes = [c.shape for c in step.cores]
    return (type(step), step.role, step.inputs, step.outputs, step.groups, step.geometry, shapes)


def assert_outlined(form: Decomposition, rank: Rank, chain: Chain, layer: Layer) -> None:
    """The outline of a rank is the chain without its numbers, and costs the same."""
    outline = form.outline(rank)
    assert [written(s) for s in outline.stages] == [written(s) for s in chain.stages]
    assert outline.parameters == chain.with_bias(np.zeros(layer.shape[0])).parameters
    size = (2, layer.shape[1] * layer.groups, *[12] * len(layer.geometry.kernel))
    assert outline.macs(size) == chain.macs(size)
    assert outline.nodes == chain.nodes


def assert_judged(
    form: Decomposition, rank: Rank, chain: Chain, layer: Layer, moments: Moments, kept: float
) -> None:
    """The error of a rank is that of its chain, or the chain is a little better."""
    found, claimed = relative_error(layer.stage, chain, moments), form.error(rank)
    assert kept * claimed - 1e-9 <= found <= claimed + 1e-9, (form.variant, rank)
    assert claimed >= -1e-12


def assert_true(
    form: Decomposition, layer: Layer, moments: Moments, ranks: Iterable[Rank], kept: float = 1.0
) -> list[float]:
    """Outlines, and errors as :func:`assert_judged` has them, are those of the cuts.

    Returns the errors of the cuts.
    """
    found = []
    for rank in ranks:
        chain = form.cut(rank)
        assert_outlined(form, rank, chain, layer)
        assert_judged(form, rank, chain, layer, moments, kept)
        assert form.error(rank) <= 1 + 1e-9
        found.append(relative_error(layer.stage, chain, moments))
    return found


def assert_faithful(form: Any, layer: Layer, moments: Moments) -> None:
    """True errors and outlines at every rank; what is claimed falls with the rank."""
    ranks = range(1, form.max_rank + 1)
    assert_true(form, layer, moments, ranks, kept=0.0)
    claimed = [form.error(r) for r in ranks]
    assert all(b <= a + 1e-6 for a, b in itertools.pairwise(claimed))


def assert_identity_at_full_rank(
    factorization: Factorization, proto: ModelProto, feed: Mapping[str, AnyArray], seed: int
) -> None:
    """Every form, in both metrics, at its largest rank, equals the original in ONNX Runtime."""
    layer = only_layer(proto)
    wanted = run(proto, feed)["y"]
    for moments in (Moments(), random_moments(layer, seed)):
        forms = factorization.propose(layer, moments)
        assert forms
        for form in forms:
            again = replaced(proto, layer.name, form.cut(form.max_rank))
            assert len(again.graph.node) > len(proto.graph.node)
            assert relative(wanted, run(again, feed)["y"]) < 1e-4, form.variant


def conv_example(
    geometry: ConvGeometry, seed: int, dtype: str = "float32", inputs: int = 3, **options: Any
) -> tuple[ModelProto, dict[str, AnyArray]]:
    """A convolution of 4 outputs and ``inputs`` inputs a group, and an input for it."""
    random, g = rng(seed), geometry.groups
    weight = random.normal(size=(4 * g, inputs, *geometry.kernel)).astype(dtype)
    bias = random.normal(size=4 * g).astype(dtype) if seed % 2 else None
    x = random.normal(size=(2, inputs * g, *sizes(geometry, 3))).astype(dtype)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return conv_model(geometry, weight, bias, element=element, **options), {"x": x}


def wide(geometry: ConvGeometry) -> int:
    """Number of kernel axes above 1."""
    return sum(k > 1 for k in geometry.kernel)


#: marks of tests that start a cluster of Dask
DASK = [
    pytest.mark.full,
    pytest.mark.skipif(
        find_spec("distributed") is None, reason='no Dask: pip install "onnx-lowrank[dask]"'
    ),
    # sockets of a cluster that a killed worker held are closed whenever they are collected
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
