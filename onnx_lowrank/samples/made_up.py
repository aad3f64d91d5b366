"""Random inputs where there is no data, of shapes that the user gives where they are dynamic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import OptionError
from onnx_lowrank.samples.dataset import Dataset, InputSpec

__all__ = ["check_shapes", "concrete_shape", "made_up"]

#: bytes of random inputs
LARGEST_RANDOM = 1 << 30


def made_up(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], seed: int, count: int = 8
) -> list[dict[str, npt.NDArray[Any]]]:
    """Random feeds, where there is no data; fewer than ``count`` where they are very large.

    Raises:
        OptionError: a shape is needed that nobody gave, or one is too large.
    """
    check_shapes(specs, shapes)
    wanted = {spec.name: concrete_shape(spec, shapes) for spec in specs}
    size = sum(8 * math.prod(shape) for shape in wanted.values())
    if size > LARGEST_RANDOM:
        raise OptionError(
            f"random inputs of the shapes {wanted} would take {size:,} bytes; give a smaller "
            "--input-shape, or --calib"
        )
    rng = np.random.default_rng(seed)
    feeds = []
    for _ in range(max(min(count, LARGEST_RANDOM // max(size, 1)), 1)):
        feed: dict[str, npt.NDArray[Any]] = {}
        for spec in specs:
            shape = wanted[spec.name]
            if spec.dtype.kind == "O":
                feed[spec.name] = np.full(shape, "", dtype=np.str_)
            elif spec.dtype.kind in "iub":
                feed[spec.name] = np.zeros(shape, spec.dtype)
            else:
                feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        feeds.append(feed)
    return feeds


def check_shapes(
    specs: Sequence[InputSpec], shapes: Mapping[str, Sequence[int]], data: Dataset | None = None
) -> None:
    """Refuse shapes that the user gives for inputs which are not there, or have others.

    Args:
        specs: inputs of the model.
        shapes: given, by name.
        data: samples whose shapes count where they are given too.

    Raises:
        OptionError: an input is unknown, or its shape is another in the model or the data.
    """
    known = {spec.name: spec for spec in specs}
    for name, given in ((n, tuple(s)) for n, s in shapes.items()):
        if name not in known:
            raise OptionError(
                f"--input-shape {name}: the model has no such input; it has {', '.join(known)}"
            )
        text = f"--input-shape {name}:{','.join(map(str, given))}"
        if min(given, default=1) < 1:
            raise OptionError(f"{text}: sizes are 1 or more")
        shape = known[name].shape
        if shape is not None and not _agree(shape, given):
            dims = ", ".join("?" if d is None else str(d) for d in shape)
            raise OptionError(
                f"{text} does not fit: the model has ({dims}) there; only ? can be given a size"
            )
        found = None if data is None else data.feed(0)[name].shape
        free = shape is None or not shape or shape[0] is None
        if found is not None and not _agree((None, *found[1:]) if free else found, given):
            raise OptionError(
                f"{text} does not fit: the data has {found} there, and its shapes count; leave "
                "the option out, or give other data"
            )


def _agree(shape: Sequence[int | None], given: Sequence[int]) -> bool:
    return len(shape) == len(given) and all(
        d is None or d == g for d, g in zip(shape, given, strict=True)
    )


def concrete_shape(spec: InputSpec, shapes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """A shape without dynamic axes: the one given, which is checked before, else batch 1.

    Raises:
        OptionError: another axis is dynamic and no shape was given.
    """
    if spec.name in shapes:
        return tuple(shapes[spec.name])
    if spec.shape is None or any(d is None for d in spec.shape[1:]):
        axes = "an unknown shape" if spec.shape is None else f"dynamic axes {spec.shape}"
        raise OptionError(
            f"input {spec.name!r} has {axes}; give --input-shape {spec.name}:{_example(spec)} "
            "(with your numbers) or --calib"
        )
    return tuple(1 if d is None else d for d in spec.shape)


def _example(spec: InputSpec) -> str:
    """A shape that an input of this rank may have: pictures where it has four axes, or lengths."""
    usual: tuple[int, ...] = (1, 3, 224, 224)
    if spec.shape is not None and len(spec.shape) != len(usual):
        usual = (1, *(128 for _ in spec.shape[1:]))
    known = usual if spec.shape is None else spec.shape
    return ",".join(str(u if d is None else d) for d, u in zip(known, usual, strict=True))
