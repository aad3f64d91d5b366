"""The models that are measured, each with its calibration samples and labelled test samples."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["NETS", "ROOT", "SHARED", "Array", "Net", "Samples", "with_ratios"]

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

Array = npt.NDArray[Any]
#: inputs by name, and the held-out labelled part as ``test.<input>`` and ``test.labels``
Samples = dict[str, Array]


@dataclass(frozen=True)
class Net:
    """One model with its data.

    Attributes:
        path: file of the model.
        read: returns its data.
        calibration: samples to draw; None for all that there are.
        ratios: targets on MACs that are measured where none are named.
    """

    path: Path
    read: Callable[[], Samples]
    calibration: int | None
    ratios: tuple[float, ...] = ()

    def write(self, folder: Path) -> Path:
        """Write its data as an archive into a folder and return the path."""
        archive = folder / "samples.npz"
        np.savez(archive, **self.read())  # type: ignore[arg-type]
        return archive


def _digits() -> Samples:
    with np.load(ROOT / "models" / "digits.npz", allow_pickle=False) as archive:
        return dict(archive)


def _cifar10(mean: list[float], std: list[float]) -> Callable[[], Samples]:
    def read() -> Samples:
        def prepared(x: Array) -> Array:
            scaled: Array = (x / 255.0 - np.array(mean)) / np.array(std)
            return _channels_first(scaled)

        with np.load(SHARED / "data" / "cifar10.npz", allow_pickle=False) as z:
            return {
                "input": prepared(z["x_train"]),
                "test.input": prepared(z["x_test"]),
                "test.labels": z["y_test"].astype(np.int64),
            }

    return read


def _imagenet(name: str, prepare: Callable[[Array], Array]) -> Callable[[], Samples]:
    """One image a class; a random half calibrates, the other half tests."""

    def read() -> Samples:
        from PIL import Image

        with np.load(SHARED / "data" / "imagenet_sample.npz", allow_pickle=False) as z:
            data, at, labels = z["jpeg"], z["offsets"], z["labels"].astype(np.int64)
        files = [data[a:b].tobytes() for a, b in pairwise(at)]
        pixels = np.stack([np.asarray(Image.open(io.BytesIO(f)).convert("RGB")) for f in files])
        order = np.random.default_rng(0).permutation(len(pixels))
        one, other = np.split(order, 2)
        return {
            name: prepare(pixels[one]),
            f"test.{name}": prepare(pixels[other]),
            "test.labels": labels[other],
        }

    return read


def _channels_first(x: Array) -> Array:
    moved: Array = x.transpose(0, 3, 1, 2).astype(np.float32)
    return moved


def _mobilenet(x: Array) -> Array:
    return _channels_first(x / 127.5 - 1)


def _squeezenet(x: Array) -> Array:
    return _channels_first(x[..., ::-1] - np.array([104.0, 117.0, 123.0]))


def _mnist() -> Samples:
    def prepared(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scaled = (x / 255.0 - 0.1307) / 0.3081
        return scaled.astype(np.float32)[:, None]

    with np.load(SHARED / "data" / "mnist.npz", allow_pickle=False) as z:
        drawn = np.random.default_rng(0).permutation(len(z["x_train"]))[:20_000]
        return {
            "input": prepared(z["x_train"][drawn]),
            "test.input": prepared(z["x_test"]),
            "test.labels": z["y_test"].astype(np.int64),
        }


def _keywords() -> Samples:
    """Half of the recordings calibrate, the other half tests."""
    with np.load(SHARED / "data" / "speech_commands_mfcc.npz", allow_pickle=False) as z:
        x = (z["x"].astype(np.float32) - float(z["zero_point"])) * float(z["scale"])
        return {
            "input": x[:500],
            "test.input": x[500:],
            "test.labels": z["y"][500:].astype(np.int64),
        }


_RESNET = _cifar10([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_VGG = _cifar10([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


def _shared(name: str, *rest: Any) -> dict[str, Net]:
    return {name: Net(SHARED / "models" / f"{name}.onnx", *rest)}


NETS: dict[str, Net] = {
    **{
        name: Net(ROOT / "models" / f"{name}.onnx", _digits, None, (0.5, 0.25))
        for name in ("digits_mlp", "digits_vgg", "digits_resnet")
    },
    **{
        name: Net(ROOT / "models" / f"{name}.onnx", _digits, None)
        for name in ("digits_vit", "digits_lstm")
    },
    **_shared("cifar10_resnet20", _RESNET, 500, (0.5, 0.33)),
    **_shared("cifar10_resnet56", _RESNET, 500, (0.5, 0.33)),
    **_shared("cifar10_vgg_s", _VGG, 500, (0.5, 0.33)),
    **_shared("imagenet_squeezenet11", _imagenet("data_0", _squeezenet), None, (0.7,)),
    **_shared("imagenet_mobilenetv2_1.0", _imagenet("input", _mobilenet), None, (0.8,)),
    **_shared("cifar10_vgg16_bn", _VGG, 500),
    **_shared("mnist_mlp_300_100", _mnist, 10_000),
    **_shared("mnist_lenet5_caffe", _mnist, 10_000),
    **_shared("speech_commands_dscnn", _keywords, None),
}


def with_ratios() -> list[str]:
    """Names of the models that have targets of their own."""
    return [name for name, net in NETS.items() if net.ratios]
