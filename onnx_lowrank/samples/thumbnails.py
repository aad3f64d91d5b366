"""Inputs as small pictures, where they are pictures."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["thumbnail"]

#: largest and smallest sides of what is shown as a picture, in pixels
_LARGEST, _SMALLEST = 96, 8


def thumbnail(sample: npt.NDArray[Any]) -> str:
    """A sample as a PNG in a ``data:`` address; empty where it is no picture.

    A picture has one channel or three, in front or behind, and numbers. The smallest becomes black
    and the largest white, whatever the inputs were normalised to.

    Args:
        sample: an input of one sample, without a batch axis.
    """
    values = np.asarray(sample)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.dtype.kind not in "fiu":
        return ""
    if values.shape[0] in (1, 3) and values.shape[-1] not in (1, 3):
        values = np.moveaxis(values, 0, -1)
    height, width, channels = values.shape
    if channels not in (1, 3) or min(height, width) < _SMALLEST:
        return ""
    step = -(-max(height, width) // _LARGEST)
    pixels = values[::step, ::step].astype(np.float64)
    known = np.isfinite(pixels)
    if not known.any():
        return ""
    low, high = pixels[known].min(), pixels[known].max()
    scaled = np.where(known, (pixels - low) / (high - low or 1.0), 0.0)
    png = _png(np.round(255 * scaled).astype(np.uint8))
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """A PNG of 8 bits a channel, from ``(height, width, 1 or 3)``.

    Reference:
        W3C, Portable Network Graphics specification, second edition, 2003.
    """
    height, width, channels = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        checked = kind + body
        return struct.pack(">I", len(body)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    body = zlib.compress(rows, 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
