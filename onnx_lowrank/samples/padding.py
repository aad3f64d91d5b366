"""Positions that only bring samples to one length; a mask among the inputs says which.

They are no data: what a model computes there nobody reads, and it may be most of what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import OptionError
from onnx_lowrank.options import OptionGroup, option
from onnx_lowrank.runtime.session import Feed

__all__ = [
    "NONE",
    "Counted",
    "Mask",
    "PaddingOptions",
    "flat",
    "shortened",
    "without_padding",
]

Array = npt.NDArray[Any]
#: positions that count, ``(samples, positions)``
Counted = npt.NDArray[np.bool_]

#: in the place of a name: all positions count
NONE = "none"


@dataclass(frozen=True)
class Mask:
    """An input that marks padding.

    Attributes:
        name: of the input, ``(samples, positions)``, perhaps with axes of length 1 between.
        padding: its value where a position is padding, 0 or 1.
    """

    name: str
    padding: int = 0

    def counted(self, feed: Feed) -> Counted | None:
        """The positions of a feed that count; None where all do."""
        values = flat(feed[self.name])
        if values is None:
            return None
        counted: Counted = values != 0
        if self.padding:
            counted = ~counted
        return None if counted.all() else counted

    def __str__(self) -> str:
        return f"{self.name}={self.padding}"


@dataclass(frozen=True)
class PaddingOptions(OptionGroup):
    """Which positions of the samples are padding."""

    title: ClassVar[str] = "padding"

    mask: str | None = option(
        None,
        "Input that is 0 (or with NAME=1, 1) where a position only brings samples to one length: "
        "such positions count in no calibration and no comparison. By default an input of zeros "
        "and ones at whose padding no attention looks; none: all positions count.",
        metavar="NAME",
    )

    def mask_in(self, names: Sequence[str]) -> Mask | None:
        """The mask that is asked for; None where that is to be found, or there is none.

        Args:
            names: inputs of the model.

        Raises:
            OptionError: the model has no such input.
        """
        if self.mask is None or self.mask == NONE:
            return None
        name, equals, value = self.mask.rpartition("=")
        if not equals or self.mask in names:
            name, value = self.mask, "0"
        if value not in ("0", "1") or name not in names:
            raise OptionError(
                f"--mask {self.mask}: give an input of the model, as NAME or NAME=1, or {NONE}; "
                f"it has {', '.join(names)}"
            )
        return Mask(name, int(value))


def flat(mask: Array) -> Array | None:
    """A mask as ``(samples, positions)``; None if it has no such shape."""
    if mask.ndim < 2 or any(n != 1 for n in mask.shape[1:-1]):
        return None
    return mask.reshape(len(mask), -1)


def shortened(feed: Feed, counted: Counted) -> dict[str, Array]:
    """A feed without the positions behind the last that counts in any of its samples.

    Args:
        feed: inputs by name; those that have the positions of the mask have them along axis 1.
        counted: the positions that count, ``(samples, positions)``.
    """
    read = np.flatnonzero(counted.any(axis=0))
    end = int(read[-1]) + 1 if len(read) else 1
    return {
        name: values[:, :end] if values.shape[1:2] == counted.shape[1:] else values
        for name, values in feed.items()
    }


def without_padding(value: Array, counted: Counted, sample: int) -> Array:
    """What a tensor holds of one sample, ``(1, positions that count, ...)``.

    Args:
        value: the tensor, ``(samples, ...)``.
        counted: the positions that count, ``(samples, positions)``.
        sample: number of the sample. A tensor without these positions along axis 1 is left whole,
            and so is a sample of padding alone.
    """
    own, rows = value[sample : sample + 1], counted[sample]
    return own[:, rows] if value.shape[1:2] == rows.shape and rows.any() else own
