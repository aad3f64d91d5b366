"""Images as samples: found in a folder, decoded one at a time, prepared as in training.

    value = (pixel * scale - mean) / std        after resize, then centre crop

Sizes follow torchvision on Pillow images: the same rounding, the same antialiased bilinear
filter, and EXIF orientation is ignored.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.modelfile.file_kinds import other_kind
from onnx_lowrank.option_values import read_numbers, read_size
from onnx_lowrank.options import OptionGroup, option

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageOptions", "Picture", "image_files"]

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"))
#: Formats that may be decoded. Pillow goes by the content of a file, and some of its other
#: decoders start external programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
#: Largest number of pixels of an image, before and after resizing; each takes four bytes.
LARGEST = 100_000_000


@dataclass(frozen=True)
class ImageOptions(OptionGroup):
    """How images become inputs; all sizes are (height, width) in pixels."""

    title: ClassVar[str] = "folders of images"

    resize: tuple[int, int] | int | None = option(
        None, "Resize to this size; one number is the length of the shorter side.",
        metavar="HxW|N", read=read_size,
    )  # fmt: skip
    crop: tuple[int, int] | int | None = option(
        None, "Cut this size out of the centre; one number is a square.",
        metavar="HxW|N", read=read_size,
    )  # fmt: skip
    mean: tuple[float, ...] = option(
        (0.0,), "Subtract this after scaling; one number, or one for each channel.",
        metavar="M,M,M", read=read_numbers,
    )  # fmt: skip
    std: tuple[float, ...] = option(
        (1.0,), "Divide by this, last; one number, or one for each channel.",
        metavar="S,S,S", read=read_numbers,
    )  # fmt: skip
    scale: float | None = option(
        None,
        "Multiply pixels (0 to 255) by this first; 1/255 by default. An integer input takes the "
        "pixels as they are.",
        metavar="F",
        read=float,
    )
    layout: str = option("NCHW", "Order of the axes.", choices=("NCHW", "NHWC"))
    channel_order: str = option("RGB", "Order of the channels.", choices=("RGB", "BGR", "GRAY"))

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            sides = size if isinstance(size, tuple) else (1 if size is None else size,) * 2
            if len(sides) != 2 or min(sides) < 1:
                raise OptionError(f"{name} must be one or two sizes of 1 or more, not {size}")
        if self.layout not in ("NCHW", "NHWC"):
            raise OptionError(f"layout must be NCHW or NHWC, not {self.layout!r}")
        if self.channel_order not in ("RGB", "BGR", "GRAY"):
            raise OptionError(f"channel_order must be RGB, BGR or GRAY, not {self.channel_order!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels) or not np.isfinite(values).all():
                raise OptionError(
                    f"{name} must be 1 or {self.channels} finite numbers, not {values}"
                )
        if 0.0 in self.std or not self.factor > 0:
            raise OptionError("std must not be 0 and scale must be positive")

    @property
    def given(self) -> ImageOptions | None:
        """The options, or None where nothing was said of images."""
        return None if self == ImageOptions() else self

    @property
    def factor(self) -> float:
        """What pixels are multiplied by."""
        return 1 / 255 if self.scale is None else self.scale

    @property
    def channels(self) -> int:
        """Number of channels."""
        return 1 if self.channel_order == "GRAY" else 3


class Picture:
    """Image file as an array ``(1, channels, height, width)``, or in the layout asked for.

    Only its header is read before it is indexed.

    Raises:
        DataError: the file is not an image, or is smaller than the crop; or Pillow is missing.
    """

    def __init__(self, path: Path, options: ImageOptions, *, integer: bool) -> None:
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if integer else np.float32)
        self._path = path
        self._options = options
        with _opened(path) as image:
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise DataError(
                    f"{path}: expected 8 bits for each channel, found mode {image.mode}; convert "
                    "the image"
                )
            width, height = image.size
        self._resized = _resized((height, width), options.resize)
        for size in ((height, width), self._resized):
            if math.prod(size) > LARGEST:
                raise DataError(
                    f"{path}: expected at most {LARGEST:,} pixels, found (height, width) {size}; "
                    "make it smaller, or leave it out"
                )
        size = self._resized if options.crop is None else _pair(options.crop)
        if size[0] > self._resized[0] or size[1] > self._resized[1]:
            raise DataError(
                f"{path}: expected at least the crop {size}, found (height, width) "
                f"{self._resized}; set a larger resize, or leave the image out"
            )
        self._size = size
        self.shape: tuple[int, ...] = (
            (1, options.channels, *size)
            if options.layout == "NCHW"
            else (1, *size, options.channels)
        )

    def __getitem__(self, rows: slice) -> npt.NDArray[Any]:
        """Decode the image and take rows of axis 0."""
        return self._decode()[None][rows]

    def _decode(self) -> npt.NDArray[Any]:
        options = self._options
        with _opened(self._path) as image:
            picture = image.convert("L" if options.channel_order == "GRAY" else "RGB")
        height, width = self._resized
        if picture.size != (width, height):
            picture = picture.resize((width, height), resample=_pillow().Resampling.BILINEAR)
        # round, not floor: as torchvision.transforms.CenterCrop
        top, left = (round((a - b) / 2) for a, b in zip(self._resized, self._size, strict=True))
        pixels = np.asarray(picture)[top : top + self._size[0], left : left + self._size[1]]
        pixels = pixels.reshape(*self._size, options.channels)
        if options.channel_order == "BGR":
            pixels = pixels[..., ::-1]
        if self.dtype != np.uint8:
            mean, std = (np.array(v, np.float32) for v in (options.mean, options.std))
            pixels = (pixels.astype(np.float32) * np.float32(options.factor) - mean) / std
        return pixels.transpose(2, 0, 1) if options.layout == "NCHW" else pixels


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder and its sub-folders, by path."""
    return sorted(
        p
        for p in folder.rglob("*")
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )


def _resized(size: tuple[int, int], resize: tuple[int, int] | int | None) -> tuple[int, int]:
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize
    short, long = min(size), max(size)
    longer = int(resize * long / short)
    return (resize, longer) if size[0] <= size[1] else (longer, resize)


def _pair(size: tuple[int, int] | int) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    pillow = _pillow()
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images, which have a limit here, and of unusual metadata
            warnings.simplefilter("ignore")
            with pillow.open(path, formats=FORMATS) as image:
                yield image
    except DataError:
        raise
    # decoders raise errors of many types on broken files
    except Exception as error:
        kind = other_kind(path)
        if kind is not None and kind.remedy and kind.name != "a picture or document":
            raise DataError(f"{path}: not an image, but {kind.as_data()}") from error
        raise DataError(f"{path}: not an image, or truncated ({error}); remove it") from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(
            'images need Pillow, which is not installed; pip install "onnx-lowrank[images]"'
        ) from error
    return Image
