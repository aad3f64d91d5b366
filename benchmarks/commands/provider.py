"""Compressed models under another execution provider, as on a graphics card.

Originals and compressed models are timed in alternation, once with inputs and outputs that stay on
the device, once with copies from and to the processor's memory. Times do not depend on what the
inputs hold, so no data are needed; the models are compressed here unless they were made before, on
another machine.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.bound import BoundModel, add_device_arguments, best_ms, device_name, in_precision
from benchmarks.command import Command, Measure
from benchmarks.command_line import compress, failure, write_samples
from benchmarks.commands.kept import ALL
from benchmarks.rows import Cell, Row
from benchmarks.tables import asked, figure, model

__all__ = ["COMMAND", "begin", "cells", "inputs_of"]

_MODELS = ("cifar10_resnet56", "cifar10_vgg16_bn", "all_minilm_l6_v2", "vit_s_focus")


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """Every model in each precision at every batch size."""
    every = product(arguments.models, arguments.precisions, arguments.batches)
    return [
        Cell("provider", name, {
            "provider": arguments.provider, "target": arguments.target, "precision": precision,
            "batch": batch,
        })
        for name, precision, batch in every
    ]  # fmt: skip


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures the cells of one model."""
    net = ALL[name]
    output, refusal = folder / "out.onnx", None
    if arguments.compressed is not None:
        output = arguments.compressed / f"{name}.onnx"
    else:
        archive = folder / "samples.npz"
        write_samples(archive, net.read())
        options = ["--calib", str(archive), "--seed", "0", "--force"]
        if arguments.samples:
            options += ["--samples", str(arguments.samples)]
        ended = compress(net.path, output, [*options, "--target", arguments.target])
        refusal = ended if ended.code else None

    def measure(cell: Cell) -> Row:
        if refusal is not None:
            return failure(cell, refusal)
        protos = [
            in_precision(onnx.load(path), cell.options["precision"]) for path in (net.path, output)
        ]
        feed = inputs_of(protos[0], cell.options["batch"], arguments.length)
        opened = [BoundModel(proto, feed, cell.options["provider"]) for proto in protos]
        before, after = best_ms(opened, arguments.seconds)
        with_copies = best_ms(opened, arguments.seconds, copies=True)
        figures = {
            "original_ms": before,
            "new_ms": after,
            "speedup": before / after,
            "speedup_with_copies": with_copies[0] / with_copies[1],
        }
        return cell.measured({}, figures, device=device_name(cell.options["provider"]))

    return measure


def inputs_of(proto: onnx.ModelProto, batch: int, length: int) -> dict[str, npt.NDArray[Any]]:
    """Inputs of a model: random numbers where it takes real ones, ones elsewhere.

    Args:
        proto: the model.
        batch: samples, where the first axis of an input is open.
        length: of all its other open axes.
    """
    random, constants = np.random.default_rng(0), {t.name for t in proto.graph.initializer}
    feed = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value or (length if axis else batch) for axis, d in enumerate(dims)]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        real = np.issubdtype(kind, np.floating)
        feed[value.name] = (random.standard_normal(shape) if real else np.ones(shape)).astype(kind)
    return feed


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder; name one that holds MODEL.onnx")
    return Path(text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_device_arguments(parser, batches=[1, 16, 64])
    parser.add_argument(
        "--compressed", type=_folder, metavar="FOLDER",
        help="folder that holds each compressed model as MODEL.onnx; by default they are made",
    )  # fmt: skip
    parser.add_argument(
        "--target", default="macs=0.7", help="of the compressed models; default: %(default)s"
    )
    parser.add_argument(
        "--samples", type=int, metavar="N", help="calibration samples to draw; default: all"
    )
    parser.add_argument(
        "--length", type=int, default=64,
        help="of open axes that are not the batch, as of sentences; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="time for each model; default: %(default)s"
    )


COMMAND = Command(
    name="provider",
    summary="Time compressed models under another execution provider, as on a graphics card.",
    models=_MODELS,
    choices=list(ALL),
    columns=(
        model(),
        asked("asked", "target"),
        asked("precision", "precision"),
        asked("batch", "batch"),
        figure("original ms", "original_ms", "{:.3f}"),
        figure("compressed ms", "new_ms", "{:.3f}"),
        figure("faster", "speedup", "{:.2f}x"),
        figure("with copies", "speedup_with_copies", "{:.2f}x"),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    path_of=lambda name: ALL[name].path,
)
