"""What models keep of what they are for, by the measures of the people who use them.

Each model is compressed as a user would on the command line: default passes, calibrated on the
calibration part alone and without labels. What users measure is measured on the test part, which
the library never sees. A result that is refused is written by ``--force`` and measured too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from benchmarks.bigger_nets import BIGGER
from benchmarks.command import Command, Measure
from benchmarks.command_line import compress, failure, parts_left, write_samples
from benchmarks.nets import NETS
from benchmarks.rows import Cell, Row
from benchmarks.tables import Column, asked, figure, model, seconds
from benchmarks.user_measures import (
    BOXES,
    LINES,
    RIGHT,
    SAME,
    SCORES,
    SENTENCES,
    SNR,
    UserMeasure,
)

__all__ = ["ALL", "ASKS", "COMMAND", "Ask", "begin", "cells"]

ALL = {**BIGGER, **NETS}

#: exit code where the guard refuses a result, or a budget cannot be met
_REFUSED = 5


class Ask(NamedTuple):
    """What is asked of a model, and what it is to keep.

    Attributes:
        model: its name.
        target: as on the command line, several with spaces between.
        measure: how its users say how good it is.
        wanted: least value of the figure of that measure.
        samples: calibration samples to draw; None for as many as are usual for the model.
    """

    model: str
    target: str
    measure: UserMeasure
    wanted: float
    samples: int | None = None


ASKS = (
    Ask("ppocrv5_rec", "macs=0.7", LINES, 0.975),
    Ask("ppocrv5_rec", "macs=0.5", LINES, 0.95),
    Ask("all_minilm_l6_v2", "macs=0.7", SENTENCES, 82.0),
    Ask("all_minilm_l6_v2", "params=0.5", SENTENCES, 81.0),
    Ask("yolov8n_320", "macs=0.7", BOXES, 0.95),
    Ask("vit_s_focus", "macs=0.7", SNR, 26.0),
    Ask("open_nsfw", "macs=0.7", SCORES, 0.99),
    Ask("imagenet_mobilenetv2_1.0", "macs=0.8", RIGHT, 0.834),
    Ask("imagenet_squeezenet11", "macs=0.7", SAME, 0.9),
    Ask("speech_commands_dscnn", "macs=0.7", SAME, 0.97),
    Ask("mnist_lenet5_caffe", "params=0.06", RIGHT, 0.9936),
    Ask("cifar10_resnet20", "macs=0.25", RIGHT, 0.9),
    # no worse than in the README
    Ask("cifar10_resnet20", "macs=0.5", RIGHT, 0.914),
    Ask("cifar10_resnet20", "macs=0.33", RIGHT, 0.908),
    Ask("cifar10_resnet56", "macs=0.5", RIGHT, 0.925),
    Ask("cifar10_resnet56", "macs=0.33", RIGHT, 0.928),
    Ask("cifar10_vgg_s", "macs=0.5", RIGHT, 0.897),
    Ask("cifar10_vgg_s", "macs=0.33", RIGHT, 0.892),
    Ask("cifar10_vgg16_bn", "macs=0.25 params=0.1", RIGHT, 0.917, 1000),
)

_MODELS = list(dict.fromkeys(ask.model for ask in ASKS))
_BY_CELL = {(ask.model, ask.target): ask for ask in ASKS}


def cells(arguments: argparse.Namespace) -> list[Cell]:
    """What is asked of the models that the arguments name."""
    named = [ask for name in arguments.models for ask in ASKS if ask.model == name]
    draws = [arguments.samples or ask.samples for ask in named]
    return [
        Cell("kept", ask.model, {"target": ask.target, "samples": drawn})
        for ask, drawn in zip(named, draws, strict=True)
    ]


def begin(name: str, folder: Path, arguments: argparse.Namespace) -> Measure:
    """Measures cells of one model, each result in a process of its own."""
    net = ALL[name]
    samples = net.read()
    archive, output = folder / "calibration.npz", folder / "out.onnx"
    there = write_samples(archive, samples)
    tested = {k.removeprefix("test."): v for k, v in samples.items() if k.startswith("test.")}

    def measure(cell: Cell) -> Row:
        ask = _BY_CELL[name, cell.options["target"]]
        count = min(cell.options["samples"] or net.calibration or there, there)
        options = ["--calib", str(archive), "--samples", str(count), "--seed", "0"]
        options += [word for target in ask.target.split() for word in ("--target", target)]
        ended = first = compress(net.path, output, options)
        refusal = first.message if first.code == _REFUSED else ""
        if refusal:
            ended = compress(net.path, output, [*options, "--force"])
        if ended.code:
            return failure(cell, ended)
        reference, new = (ask.measure.answer(path, tested) for path in (net.path, output))
        figures = {
            **ask.measure.figures(reference, new, tested),
            **parts_left(ended),
            "seconds": round(first.seconds, 1),
        }
        used = {"calibration": count, "test": len(new)}
        return cell.measured(used, figures, refusal=refusal)

    return measure


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--samples", type=int, metavar="N",
        help="calibration samples to draw; by default as many as are usual for each model",
    )  # fmt: skip


def _ask(row: Row) -> Ask:
    return _BY_CELL[row.model, row.options["target"]]


def _original(row: Row) -> str:
    return _figure(row, f"{_ask(row).measure.figure}_before", _ask(row).measure.form)


def _new(row: Row) -> str:
    return _figure(row, _ask(row).measure.figure, _ask(row).measure.form)


def _wanted(row: Row) -> str:
    return f">= {_ask(row).measure.form.format(_ask(row).wanted)}"


def _kept(row: Row) -> str:
    ask = _ask(row)
    if ask.measure.figure not in row.figures:
        return ""
    value = row.figures[ask.measure.figure]
    return "yes" if value is None or value >= ask.wanted else "no"


def _besides(row: Row) -> str:
    told = (_figure(row, name, form) for name, form in _ask(row).measure.besides)
    return ", ".join(text for text in told if text)


def _figure(row: Row, name: str, form: str) -> str:
    return figure("", name, form, unbounded="exact").text(row)


def _samples(row: Row) -> str:
    return " / ".join(str(count) for count in row.samples.values())


def _guard(row: Row) -> str:
    if "refusal" not in row.details:
        return ""
    return f"refused: {row.details['refusal']}" if row.details["refusal"] else "written"


COMMAND = Command(
    name="kept",
    summary="Measure what models keep of what they are for, as their users measure it.",
    models=_MODELS,
    choices=_MODELS,
    columns=(
        model(),
        asked("asked", "target"),
        Column("measure", lambda row: _ask(row).measure.heading, of_question=True),
        Column("original", _original),
        Column("new", _new),
        Column("wanted", _wanted, of_question=True),
        Column("kept", _kept),
        Column("besides", _besides),
        figure("MACs left", "macs"),
        figure("parameters left", "params"),
        Column("samples", _samples),
        seconds(),
        Column("guard", _guard),
    ),
    cells=cells,
    begin=begin,
    add_arguments=_add_arguments,
    path_of=lambda name: ALL[name].path,
)
