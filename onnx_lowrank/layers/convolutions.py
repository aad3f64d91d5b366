"""Conv and ConvTranspose as layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.nodes import Node
from onnx_lowrank.layers.layer import Layer
from onnx_lowrank.layers.operands import NotLinear, constant_of, operand_name, weight_of
from onnx_lowrank.layers.placed import PlacedLayer

__all__ = ["convolution", "turned"]

Array = npt.NDArray[np.floating[Any]]


def convolution(graph: Graph, node: Node, name: str) -> PlacedLayer:
    """A convolution; a transposed one is turned into the plain one of its geometry.

    Raises:
        NotLinear: its weight cannot be read, or its attributes do not fit together.
    """
    transposed = node.op == "ConvTranspose"
    weight = weight_of(graph, node, 1)
    if weight.ndim < 3:
        raise NotLinear(f"weight has {weight.ndim} axes; a convolution has 3 or more")
    axes = weight.ndim - 2
    groups = int(graph.attribute(node, "group", 1))
    if groups < 1 or weight.shape[0] % groups:
        side = "inputs" if transposed else "outputs"
        raise NotLinear(f"{weight.shape[0]} {side} cannot be divided into {groups} groups")

    def ints(key: str, default: int, count: int = axes) -> tuple[int, ...]:
        values = tuple(map(int, graph.attribute(node, key) or [default] * count))
        if len(values) != count:
            raise NotLinear(f"{key} has {len(values)} numbers, but should have {count}")
        return values

    auto_pad = str(graph.attribute(node, "auto_pad", "NOTSET") or "NOTSET")
    geometry = ConvGeometry(
        kernel=weight.shape[2:],
        strides=ints("strides", 1),
        dilations=ints("dilations", 1),
        pads=ints("pads", 0, 2 * axes) if auto_pad == "NOTSET" else (0,) * (2 * axes),
        groups=groups,
        auto_pad=auto_pad,
    )
    if transposed:
        if any(geometry.kernel[a] == 1 and geometry.strides[a] > 1 for a in range(axes)):
            raise NotLinear("its stride is larger than 1 along an axis where its kernel is 1 wide")
        geometry = _transposed(geometry, ints("output_padding", 0))
        if graph.attribute(node, "output_shape"):
            extents = graph.extents(node.inputs[0].name)
            geometry = _reaching(geometry, ints("output_shape", 0), extents, auto_pad)
    weight_name, bias_name = node.inputs[1].name, operand_name(node, 2)
    if bias_name:
        constant_of(graph, bias_name, "bias")

    def read() -> tuple[Array, Array | None]:
        values = constant_of(graph, weight_name, "weight")
        bias = constant_of(graph, bias_name, "bias") if bias_name else None
        return (turned(values, groups) if transposed else values), bias

    layer = Layer(
        name=name,
        op=str(node.op),
        dtype=weight.dtype,
        shape=turned(weight, groups).shape if transposed else weight.shape,
        geometry=geometry,
        biased=bias_name is not None,
        _load=read,
    )
    return PlacedLayer(
        value=layer,
        input=node.inputs[0].name,
        output=node.outputs[0].name,
        nodes=(node,),
        sharers=graph.uses(weight_name),
    )


def turned(weight: Array, groups: int) -> Array:
    """Turn the weight of a transposed convolution into that of the plain one, or back.

    Args:
        weight: ``(C, N / groups, *kernel)``.
        groups: number of groups.

    Returns:
        The weight ``(N, C / groups, *kernel)`` with the kernel reversed along each spatial axis.
    """
    grouped = weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    plain: Array = np.flip(grouped, tuple(range(3, grouped.ndim)))
    return plain.reshape(-1, *plain.shape[2:])


def _reaching(
    geometry: ConvGeometry,
    wanted: tuple[int, ...],
    extents: tuple[int | None, ...] | None,
    auto_pad: str,
) -> ConvGeometry:
    """The geometry of a transposed convolution whose pads follow from ``output_shape``.

    Args:
        geometry: the geometry without these pads.
        wanted: extents of the spatial axes of the output.
        extents: extents of all axes of the input, batch and channels included.
        auto_pad: decides on which side the smaller part of an odd pad goes.

    Raises:
        NotLinear: the input has no fixed size, or the output cannot have this size.
    """
    sizes = [n for n in (extents or ())[2:] if n is not None]
    if len(sizes) != geometry.axes:
        raise NotLinear(
            "its pads follow from output_shape and the size of its input, which is dynamic; "
            "give the input a fixed size"
        )
    plain = replace(geometry, pads=(0,) * len(geometry.pads))
    excess = [n - w for n, w in zip(plain.output_spatial(sizes), wanted, strict=True)]
    more = [o + max(-e, 0) for o, e in zip(geometry.output_padding, excess, strict=True)]
    most = [max(s, d) for s, d in zip(geometry.strides, geometry.dilations, strict=True)]
    if any(m >= limit for m, limit in zip(more, most, strict=True)):
        raise NotLinear("its output_shape is larger than its kernel reaches")
    small = [max(e, 0) // 2 for e in excess]
    large = [max(e, 0) - s for e, s in zip(excess, small, strict=True)]
    pads = (*small, *large) if auto_pad == "SAME_UPPER" else (*large, *small)
    return replace(plain, pads=pads, output_padding=tuple(more))


def _transposed(geometry: ConvGeometry, output_padding: tuple[int, ...]) -> ConvGeometry:
    """The geometry of a transposed convolution, whose ``SAME`` pads do not depend on the input."""
    pads = geometry.pads
    if geometry.auto_pad.startswith("SAME"):
        extra = [
            max((k - 1) * d + 1 + more - s, 0)
            for k, d, s, more in zip(
                geometry.kernel, geometry.dilations, geometry.strides, output_padding, strict=True
            )
        ]
        small, large = [e // 2 for e in extra], [e - e // 2 for e in extra]
        upper = geometry.auto_pad == "SAME_UPPER"
        pads = (*small, *large) if upper else (*large, *small)
    return replace(
        geometry, pads=pads, auto_pad="NOTSET", transposed=True, output_padding=output_padding
    )
