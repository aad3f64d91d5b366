"""What the width of a factorized layer costs under an execution provider.

Eight copies of a layer stand one behind the other, then eight copies of its two factors, at ranks
around the one that leaves half of the MACs. Times of ranks that are no multiple of 8 or 16 are set
beside those of the next multiple: where they are longer, ranks on such a grid cost nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.bound import BoundModel, add_device_arguments, best_ms, device_name, in_precision
from benchmarks.command import Command, Measure
from benchmarks.rows import Cell, Row
from benchmarks.tables import asked, figure, model

__all__ = ["COMMAND", "LAYERS", "Layer", "begin", "cells", "compared", "stack"]

#: copies of a layer in a model, so that the call of the session weighs little
_COPIES = 8

#: ranks on each side of the middle, and the smallest one
_AROUND, _LEAST = 16, 8


class Layer(NamedTuple):
    """A layer with as many outputs as inputs.

    Attributes:
        channels: of its input and its output.
        places: the other axes of its input: words, or height and width.
        kernel: height and width of its window; 0 for a product of matrices.
    """

    channels: int
    places: tuple[int, ...]
    kernel: int = 0

    @property
    def middle(self) -> int:
        """The rank that leaves half of the MACs, as the next multiple of 16 below it."""
        outer = self.channels * max(self.kernel, 1)
        return outer // 4 // 16 * 16


LAYERS = {
    "MatMul 384, 197 words": Layer(384, (197,)),
    "MatMul 768, 64 words": Layer(768, (64,)),
    "Conv 3x3, 64, 32x32": Layer(64, (32, 32), 3),
    "Conv 3x3, 256, 14x14": Layer(256, (14, 14), 3),
}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every layer in each precision at every batch size."""
    every = product(arguments.models, arguments.precisions, arguments.batches)
    return [
        Cell("widths", name, {
            "provider": arguments.provider, "precision": precision, "batch": batch,
        })
        for name, precision, batch in every
    ]  # fmt: skip


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures the cells of one layer."""
    layer = LAYERS[name]
    ranks = sorted({_LEAST, *range(layer.middle - _AROUND, layer.middle + _AROUND + 1)})

    def measure(cell: Cell) -> Row:
        shape = (cell.options["batch"], *_sample_shape(layer))
        feed = {"x": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
        opened = [
            BoundModel(
                in_precision(stack(layer, rank), cell.options["precision"]), feed,
                cell.options["provider"],
            )
            for rank in (None, *ranks)
        ]  # fmt: skip
        whole, *factorized = best_ms(opened, arguments.seconds)
        parts = {rank: t / whole for rank, t in zip(ranks, factorized, strict=True)}
        figures = {
            "original_ms": whole / _COPIES,
            "least_time": parts[_LEAST],
            "half_time": parts[layer.middle],
            "odd_by_eight": compared(parts, 8, lambda r: r % 8 != 0),
            "eight_by_sixteen": compared(parts, 16, lambda r: r % 16 == 8 and r > _LEAST),
        }
        device = device_name(cell.options["provider"])
        return cell.measured({}, figures, device=device, parts={str(r): parts[r] for r in ranks})

    return measure


def compared(parts: dict[int, float], grid: int, chosen: Callable[[int], bool]) -> float:
    """Mean of the times of chosen ranks, each over the time of the next multiple of ``grid``."""
    nexts = {rank: -(-rank // grid) * grid for rank in parts if chosen(rank)}
    return float(np.mean([parts[r] / parts[n] for r, n in nexts.items() if n in parts]))


def stack(layer: Layer, rank: int | None) -> onnx.ModelProto:
    """Copies of a layer one behind the other, each with an activation, with random weights.

    Args:
        layer: what is copied.
        rank: of its two factors in its place; None for the layer itself.
    """
    random, nodes, constants, at = np.random.default_rng(0), [], [], "x"
    for copy in range(_COPIES):
        for place, (shape, attributes) in enumerate(_factors(layer, rank)):
            name = f"{copy}.{place}"
            fan_in = shape[0] if layer.kernel == 0 else int(np.prod(shape[1:]))
            weight = random.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(fan_in))
            constants.append(numpy_helper.from_array(weight, f"w{name}"))
            kind = "Conv" if layer.kernel else "MatMul"
            nodes.append(helper.make_node(kind, [at, f"w{name}"], [f"y{name}"], **attributes))
            at = f"y{name}"
        nodes.append(helper.make_node("Relu", [at], [f"z{copy}"]))
        at = f"z{copy}"
    whole = (None, *_sample_shape(layer))
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, whole) for n in ("x", at)]
    graph = helper.make_graph(nodes, "widths", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _factors(layer: Layer, rank: int | None) -> Sequence[tuple[tuple[int, ...], dict[str, Any]]]:
    """Shape and attributes of each node in the place of a layer."""
    c, k, pad = layer.channels, layer.kernel, layer.kernel // 2
    if not k:
        return [((c, c), {})] if rank is None else [((c, rank), {}), ((rank, c), {})]
    if rank is None:
        return [((c, c, k, k), {"pads": [pad] * 4})]
    return [
        ((rank, c, k, 1), {"pads": [pad, 0, pad, 0]}),
        ((c, rank, 1, k), {"pads": [0, pad, 0, pad]}),
    ]


def _sample_shape(layer: Layer) -> tuple[int, ...]:
    if layer.kernel:
        return (layer.channels, *layer.places)
    return (*layer.places, layer.channels)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(parser, batches=[1, 16])
    parser.add_argument(
        "--seconds", type=float, default=0.05, help="time for each rank; default: %(default)s"
    )


COMMAND = Command(
    name="widths",
    summary="Time the factors of a layer rank by rank under an execution provider.",
    models=list(LAYERS),
    choices=list(LAYERS),
    columns=(
        model(),
        asked("precision", "precision"),
        asked("batch", "batch"),
        figure("layer ms", "original_ms", "{:.4f}"),
        figure("rank 8", "least_time"),
        figure("half of the MACs", "half_time"),
        figure("other ranks by the next multiple of 8", "odd_by_eight"),
        figure("odd multiples of 8 by the next of 16", "eight_by_sixteen"),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    path_of=lambda name: Path(__file__),
)
