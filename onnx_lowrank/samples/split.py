"""Which samples calibrate and which validate; random inputs where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.option_values import check_count, read_shapes
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import (
    HELD_OUT,
    Dataset,
    ImageOptions,
    InputSpec,
    has_part,
    input_specs,
    load_dataset,
    split,
)
from onnx_lowrank.samples.features import features_of_model
from onnx_lowrank.samples.made_up import check_shapes, made_up
from onnx_lowrank.samples.mask_trial import by_length, with_mask
from onnx_lowrank.samples.padding import PaddingOptions
from onnx_lowrank.samples.row_trial import RowTrial
from onnx_lowrank.samples.selection import (
    RANDOM,
    SELECTIONS,
    check_selection,
    choose_samples,
)

__all__ = [
    "CalibrationOptions",
    "DataOptions",
    "DrawOptions",
    "Samples",
    "gather",
]

#: samples that a validation looks at, at the most
LARGEST_VALIDATION = 1000


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    """Where samples come from."""

    title: ClassVar[str] = "data"

    calib: Any = option(
        None,
        "Typical inputs, without labels: an .npz or .npy file, a folder of these, of images or of "
        "test_data_set_*, or file.py:function; in Python also arrays, feeds or a calibration data "
        "reader. Without them weights are fitted instead of responses, at a price in accuracy.",
        metavar="PATH",
    )
    input_shapes: Mapping[str, Sequence[int]] | None = option(
        None,
        "Shape of an input with dynamic axes beside the batch, where no data tells; may be "
        "repeated for several inputs.",
        metavar="NAME:1,3,224,224",
        read=read_shapes,
        repeat=True,
        flag="--input-shape",
    )

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """Shapes by name of the inputs that were given one."""
        return self.input_shapes or {}


@dataclass(frozen=True)
class DrawOptions(OptionGroup):
    """Which samples are drawn, and the seed of all draws."""

    title: ClassVar[str] = "draws"

    samples: int | None = option(
        None,
        "Number of calibration samples to draw. By default all, less a fifth for validation where "
        "there are no others.",
        metavar="N",
        read=int,
    )
    seed: int = option(0, "Random seed of every draw.", metavar="N")

    def __post_init__(self) -> None:
        if self.samples is not None:
            check_count("samples", self.samples)
        check_count("seed", self.seed, least=0)


@dataclass(frozen=True)
class CalibrationOptions(DrawOptions):
    """Which samples calibrate, and the seed of all draws."""

    select: str = option(
        RANDOM,
        "How --samples are chosen among the calibration data: random; l21, those that the others "
        "are made of, by what the model's last layers read; decorrelated, the same but no two "
        "alike.",
        choices=SELECTIONS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self.select)
        if self.select != RANDOM and self.samples is None:
            raise OptionError(
                f"--select {self.select} chooses among the samples, and nothing says how many; "
                "give --samples N"
            )


@dataclass(frozen=True)
class Samples:
    """The samples of a job.

    Attributes:
        calibration: samples to calibrate on; None without data.
        validation: samples to validate on; made up at random without data.
        read: how they were read and split, one sentence each.
        masked: which of their positions are padding, in a sentence; empty where all count.
    """

    calibration: Dataset | None
    validation: Dataset
    read: tuple[str, ...]
    masked: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """All that is to be said of them."""
        return (*self.read, *([self.masked] if self.masked else []))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the calibration samples; empty without."""
        return "" if self.calibration is None else self.calibration.digest()


def gather(
    source: Model,
    data: DataOptions,
    draw: CalibrationOptions,
    images: ImageOptions,
    padding: PaddingOptions,
    runtime: Runtime,
    progress: Progress | None = None,
) -> Samples:
    """Samples to calibrate on and others to validate on.

    Validation takes the held-out part of an archive, else samples that calibration did not draw,
    else a fifth of all.

    Args:
        source: the model.
        data: where samples come from.
        draw: how many are drawn, how, and the seed.
        images: how pictures become inputs.
        padding: which positions are padding.
        runtime: that shows whether rows are samples, and which input is a mask.
        progress: told of every sample whose features are made.

    Raises:
        DataError: the samples cannot be read, or do not fit the model.
        OptionError: a shape is needed that was not given, or does not fit.
    """
    calib, input_shapes = data.calib, data.shapes
    samples, seed = draw.samples, draw.seed
    specs, trial = input_specs(source), RowTrial(source, runtime)
    check_shapes(specs, input_shapes)
    by_features = draw.select != RANDOM
    if calib is None:
        if by_features:
            raise OptionError(
                f"--select {draw.select} chooses among calibration samples, and there are none; "
                "give --calib"
            )
        made = load_dataset(made_up(specs, input_shapes, seed), specs, trial=trial)
        return Samples(None, made, (
            "no calibration data: weights are fitted instead of responses, and the check ran on "
            "random inputs; give --calib for better accuracy and a check that means something",
            *_assumed(specs, made, input_shapes),
        ))  # fmt: skip

    def choose(data: Dataset) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        assert samples is not None
        chosen, said = choose_samples(
            data, samples, draw.select, seed,
            lambda: features_of_model(source, data, runtime, seed, progress),
        )  # fmt: skip
        return chosen, (*data.notes, said)

    def shorter(data: Dataset) -> Dataset:
        return by_length(data, source, runtime)

    if has_part(calib):
        calibration = load_dataset(
            calib, specs, samples=None if by_features else samples, seed=seed,
            images=images.given, trial=trial,
        )  # fmt: skip
        calibration, masked = with_mask(calibration, source, runtime, padding)
        notes = calibration.notes
        if by_features:
            chosen, notes = choose(calibration)
            calibration = calibration.subset(chosen)
        held = load_dataset(
            calib, specs, samples=LARGEST_VALIDATION, seed=seed, images=images.given, part=HELD_OUT,
            trial=trial,
        )  # fmt: skip
        if calibration.mask is not None:
            held = held.with_mask(calibration.mask)
        check_shapes(specs, input_shapes, calibration)
        return Samples(shorter(calibration), held, notes, masked)
    everything = load_dataset(calib, specs, seed=seed, images=images.given, trial=trial)
    check_shapes(specs, input_shapes, everything)
    everything, masked = with_mask(everything, source, runtime, padding)
    total = len(everything)
    if samples is not None and samples < total:
        notes = everything.notes
        if by_features:
            chosen, notes = choose(everything)
            calibration = everything.subset(chosen)
            rest = everything.subset(np.setdiff1d(np.arange(total), chosen))
        else:
            rest, calibration = split(everything, samples, seed)
        if len(rest) > LARGEST_VALIDATION:
            _, rest = split(rest, LARGEST_VALIDATION, seed)
        return Samples(shorter(calibration), rest, notes, masked)
    if total < 2:
        note = "one sample only: it served to calibrate and to validate"
        return Samples(everything, everything, (*everything.notes, note), masked)
    calibration, held = split(everything, min(max(total // 5, 1), LARGEST_VALIDATION), seed)
    note = f"{len(held)} of {total} samples were held out of calibration to validate on"
    return Samples(shorter(calibration), held, (*everything.notes, note), masked)


def _assumed(
    specs: Sequence[InputSpec], made: Dataset, shapes: Mapping[str, Sequence[int]]
) -> list[str]:
    """What is to be said where a dynamic axis 0 was made 1, and is no batch."""
    names = [spec.name for spec in specs if spec.free_batch and spec.name not in shapes]
    if made.batchable or not names:
        return []
    first = ", ".join(f"{n} {v.shape}" for n, v in made.feed(0).items())
    return [
        f"axis 0 of {', '.join(names)} is dynamic, and runs of the model did not show that it is a "
        f"batch; costs and times are those of {first}; give --input-shape or --calib for others"
    ]
