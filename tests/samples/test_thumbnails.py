from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from onnx_lowrank.samples.thumbnails import thumbnail


def decoded(address: str) -> npt.NDArray[Any]:
    kind, _, data = address.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        image.load()
        return np.asarray(image)


def test_pixels_are_those_of_the_sample() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    forms = (pixels, pixels.transpose(2, 0, 1), pixels / 255.0 - 0.5, pixels.astype(np.int64))
    for sample in forms:
        assert np.array_equal(decoded(thumbnail(sample)), pixels)
    grey = pixels[..., 0]
    for sample in (grey, grey[None], grey[..., None], grey.astype(np.float32) * 7 - 3):
        assert np.array_equal(decoded(thumbnail(sample)), grey)


def test_large_ones_are_made_small() -> None:
    sample = np.linspace(0, 1, 3 * 400 * 300).reshape(3, 400, 300)
    shown = decoded(thumbnail(sample))
    assert shown.shape == (80, 60, 3)
    some = sample[:, ::5, ::5]
    wanted = np.round(255 * (some - some.min()) / np.ptp(some))
    assert np.array_equal(shown, wanted.transpose(1, 2, 0))


def test_odd_numbers() -> None:
    sample = np.zeros((8, 8))
    assert decoded(thumbnail(sample)).max() == 0
    sample[0, 0], sample[1, 1] = np.nan, 2.0
    shown = decoded(thumbnail(sample))
    assert (shown[0, 0], shown[1, 1]) == (0, 255)
    assert thumbnail(np.full((8, 8), np.nan)) == ""


@pytest.mark.parametrize(
    "sample",
    [np.zeros(64), np.zeros((7, 64)), np.zeros((4, 16, 16)), np.zeros((2, 3, 9, 9)), np.array("a"),
     np.zeros((8, 8), bool), np.array(3.0), np.full((8, 8), "text")],
)  # fmt: skip
def test_what_is_no_picture(sample: npt.NDArray[Any]) -> None:
    assert thumbnail(sample) == ""
