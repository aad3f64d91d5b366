from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.samples.dataset import ImageOptions, InputSpec, load_dataset

FLOAT = np.dtype(np.float32)
ANY = (InputSpec("x", FLOAT, (None, 3, None, None)),)
RNG = np.random.default_rng(0)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def noise(height, width):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_values_by_hand(tmp_path):
    pixels = write(tmp_path / "a.png", np.array([[[0, 51, 255]]], np.uint8))
    options = ImageOptions(mean=(0.5, 0.2, 0.0), std=(0.5, 2.0, 0.25))
    data = load_dataset(tmp_path, ANY, images=options)
    assert pixels.shape == (1, 1, 3)
    np.testing.assert_allclose(
        data.feed(0)["x"], np.array([-1.0, 0.0, 4.0]).reshape(1, 3, 1, 1), rtol=0, atol=1e-6
    )
    assert data.feed(0)["x"].dtype == np.float32


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["RGB", "BGR", "GRAY"])
def test_layout_and_channel_order(tmp_path, layout, order):
    pixels = write(tmp_path / "a.png", noise(4, 5))
    channels = 1 if order == "GRAY" else 3
    shape = (None, channels, 4, 5) if layout == "NCHW" else (None, 4, 5, channels)
    options = ImageOptions(scale=1.0, layout=layout, channel_order=order)
    value = load_dataset(tmp_path, (InputSpec("x", FLOAT, shape),), images=options).feed(0)["x"]
    wanted = {
        "RGB": pixels,
        "BGR": pixels[..., ::-1],
        "GRAY": np.asarray(Image.fromarray(pixels).convert("L"))[..., None],
    }[order]
    wanted = wanted.transpose(2, 0, 1) if layout == "NCHW" else wanted
    np.testing.assert_array_equal(value, wanted[None].astype(np.float32))


def test_mean_follows_channel_order(tmp_path):
    write(tmp_path / "a.png", np.array([[[10, 20, 30]]], np.uint8))
    options = ImageOptions(scale=1.0, mean=(1.0, 2.0, 3.0), channel_order="BGR")
    value = load_dataset(tmp_path, ANY, images=options).feed(0)["x"]
    np.testing.assert_array_equal(value.ravel(), [29, 18, 7])


@pytest.mark.parametrize(
    ("size", "resize", "crop", "wanted"),
    [
        ((4, 6), (2, 3), None, (2, 3)),
        ((4, 6), 2, None, (2, 3)),
        ((7, 5), 3, None, (4, 3)),  # int(3 * 7 / 5), as torchvision
        ((6, 6), None, 4, (4, 4)),
        ((9, 6), 6, (4, 5), (4, 5)),
    ],
)
def test_sizes(tmp_path, size, resize, crop, wanted):
    write(tmp_path / "a.png", noise(*size))
    options = ImageOptions(resize=resize, crop=crop)
    assert load_dataset(tmp_path, ANY, images=options).feed(0)["x"].shape == (1, 3, *wanted)


def test_resize_is_antialiased(tmp_path):
    # a checkerboard one pixel wide must become grey; without antialiasing it stays black or white
    board = (np.indices((32, 32)).sum(axis=0) % 2 * 255).astype(np.uint8)
    write(tmp_path / "a.png", np.repeat(board[..., None], 3, axis=2))
    value = load_dataset(tmp_path, ANY, images=ImageOptions(resize=4)).feed(0)["x"]
    assert np.abs(value - 0.5).max() < 0.1


def test_crop_takes_the_centre(tmp_path):
    pixels = write(tmp_path / "a.png", noise(6, 8))
    value = load_dataset(tmp_path, ANY, images=ImageOptions(scale=1.0, crop=(2, 4))).feed(0)["x"]
    np.testing.assert_array_equal(value[0].transpose(1, 2, 0), pixels[2:4, 2:6])


def test_folder_is_sorted_with_subfolders_and_other_files_are_ignored(tmp_path):
    for k, name in enumerate(["b/1.PNG", "a/2.bmp", "c.Ppm"]):
        write(tmp_path / name, np.full((2, 2, 3), k, np.uint8))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "._c.png").write_bytes(b"no image either")
    data = load_dataset(tmp_path, ANY, images=ImageOptions(scale=1.0))
    assert [int(data.feed(i)["x"][0, 0, 0, 0]) for i in range(len(data))] == [1, 0, 2]
    assert data.batchable
    (batch,) = data.batches(8)
    assert batch["x"].shape == (3, 3, 2, 2)


def test_jpeg_and_webp(tmp_path):
    for name in ("a.jpg", "b.JPEG", "c.webp"):
        write(tmp_path / name, np.full((8, 8, 3), 128, np.uint8))
    data = load_dataset(tmp_path, ANY, images=ImageOptions(scale=1.0))
    assert len(data) == 3
    assert all(abs(data.feed(i)["x"].mean() - 128) < 4 for i in range(3))


def test_sizes_that_differ_are_not_batchable(tmp_path):
    write(tmp_path / "a.png", noise(4, 4))
    write(tmp_path / "b.png", noise(4, 6))
    data = load_dataset(tmp_path, ANY, images=ImageOptions())
    assert not data.batchable
    assert [b["x"].shape for b in data.batches(2)] == [(1, 3, 4, 4), (1, 3, 4, 6)]


def test_fixed_batch(tmp_path):
    for k in range(5):
        write(tmp_path / f"{k}.png", np.full((2, 2, 3), k, np.uint8))
    specs = (InputSpec("x", FLOAT, (2, 3, 2, 2)),)
    data = load_dataset(tmp_path, specs, images=ImageOptions(scale=1.0))
    assert len(data) == 2
    assert "the last 1 of 5" in data.notes[0]
    assert data.feed(1)["x"][:, 0, 0, 0].tolist() == [2, 3]


def test_samples_are_chosen_before_files_are_opened(tmp_path):
    for k in range(6):
        write(tmp_path / f"{k}.png", np.full((2, 2, 3), k, np.uint8))
    options = ImageOptions(scale=1.0)
    whole = load_dataset(tmp_path, ANY, images=options)
    chosen = np.sort(np.random.default_rng(3).choice(6, 2, replace=False))
    for k in set(range(6)) - set(chosen.tolist()):
        (tmp_path / f"{k}.png").write_bytes(b"broken")
    part = load_dataset(tmp_path, ANY, images=options, samples=2, seed=3)
    assert part.digest() == whole.subset(chosen).digest()


def test_integer_input_takes_pixels_as_they_are(tmp_path):
    pixels = write(tmp_path / "a.png", noise(3, 3))
    specs = (InputSpec("x", np.dtype(np.uint8), (1, 3, 3, 3)),)
    for options in (None, ImageOptions()):
        value = load_dataset(tmp_path, specs, images=options).feed(0)["x"]
        assert value.dtype == np.uint8
        np.testing.assert_array_equal(value[0].transpose(1, 2, 0), pixels)
    with pytest.raises(DataError, match="takes whole pixels as uint8; leave mean"):
        load_dataset(tmp_path, specs, images=ImageOptions(mean=(0.5,)))


def test_float_input_needs_options(tmp_path):
    write(tmp_path / "a.png", noise(3, 3))
    with pytest.raises(DataError, match="nothing was said of how training scaled"):
        load_dataset(tmp_path, ANY)


def test_alpha_and_palette(tmp_path):
    rgba = np.dstack([noise(2, 2), np.full((2, 2), 9, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., :3]).quantize(4).save(tmp_path / "b.png")
    data = load_dataset(tmp_path, ANY, images=ImageOptions(scale=1.0))
    np.testing.assert_array_equal(data.feed(0)["x"][0].transpose(1, 2, 0), rgba[..., :3])
    assert data.feed(1)["x"].shape == (1, 3, 2, 2)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((None, 3, 8, 8), r"expects the shape \(N, 3, 8, 8\), found \(1, 3, 4, 6\)"),
        ((None, 8, 8, 3), r"expects the shape \(N, 8, 8, 3\), found \(1, 3, 4, 6\)"),
        ((None, 72), r"expects the shape \(N, 72\), found"),
    ],
)
def test_wrong_size_names_the_file(tmp_path, shape, found):
    write(tmp_path / "cat.png", noise(4, 6))
    with pytest.raises(DataError, match=rf"cat\.png: .*{found}.*; set resize, crop, layout"):
        load_dataset(tmp_path, (InputSpec("x", FLOAT, shape),), images=ImageOptions())


def test_image_smaller_than_the_crop(tmp_path):
    write(tmp_path / "cat.png", noise(4, 6))
    with pytest.raises(DataError, match=r"cat\.png: expected at least the crop \(5, 5\)"):
        load_dataset(tmp_path, ANY, images=ImageOptions(crop=5))


def test_broken_files(tmp_path):
    write(tmp_path / "a.png", noise(40, 40))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    data = load_dataset(tmp_path, ANY, images=ImageOptions())
    with pytest.raises(DataError, match=r"a\.png: not an image, or truncated"):
        data.feed(0)
    (tmp_path / "a.png").write_bytes(b"\0" * 50)
    with pytest.raises(DataError, match=r"a\.png: not an image, or truncated"):
        load_dataset(tmp_path, ANY, images=ImageOptions())


def test_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.full((2, 2), 3000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected 8 bits for each channel, found mode I;16"):
        load_dataset(tmp_path, ANY, images=ImageOptions())


def test_missing_pillow(tmp_path, monkeypatch):
    write(tmp_path / "a.png", noise(2, 2))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r'pip install "onnx-lowrank\[images\]"'):
        load_dataset(tmp_path, ANY, images=ImageOptions())


def test_several_inputs(tmp_path):
    write(tmp_path / "a.png", noise(2, 2))
    with pytest.raises(DataError, match="each of the inputs x, y"):
        load_dataset(tmp_path, (*ANY, InputSpec("y", FLOAT, (None,))), images=ImageOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, "resize must be one or two sizes"),
        ({"crop": (1, 2, 3)}, "crop must be one or two sizes"),
        ({"layout": "CHWN"}, "layout must be NCHW or NHWC"),
        ({"channel_order": "RGBA"}, "channel_order must be"),
        ({"mean": (0.0, 1.0)}, "mean must be 1 or 3 finite numbers"),
        ({"std": (float("nan"),)}, "std must be 1 or 3 finite numbers"),
        ({"std": (0.0,)}, "std must not be 0"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(OptionError, match=message):
        ImageOptions(**options)
