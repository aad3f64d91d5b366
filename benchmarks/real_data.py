"""Typical inputs of the models that others made, prepared as each of them wants them.

Calibration samples stand under the name of their input, held-out ones under ``test.<input>``, their
labels under ``test.labels``. Where the samples of an input do not lie along one axis, the data is a
list of feeds instead. The cards of the models say what each of them wants.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.nets import NETS, SHARED, Array, Samples

__all__ = ["REAL", "Real", "photographs"]

_DATA = SHARED / "data"


@dataclass(frozen=True)
class Real:
    """What is known of a model.

    Attributes:
        read: returns its data; None where there is none.
        samples: number of calibration samples.
        shapes: shapes of its inputs with dynamic axes, where there is no data.
    """

    read: Callable[[], Samples | list[Samples]] | None = None
    samples: int = 200
    shapes: dict[str, tuple[int, ...]] | None = None


def _columns(name: str, train: Array, test: Array, labels: Array | None = None) -> Samples:
    columns: Samples = {name: train.astype(np.float32), f"test.{name}": test.astype(np.float32)}
    if labels is not None:
        columns["test.labels"] = labels.astype(np.int64)
    return columns


def _known(name: str, held_out: int = 1000) -> Callable[[], Samples]:
    """The data of a benchmark that is there already, cut to ``held_out`` samples."""

    def read() -> Samples:
        return {
            k: v[:held_out] if k.startswith("test.") else v for k, v in NETS[name].read().items()
        }

    return read


def _mnist(name: str, *, scaled: bool = True) -> Callable[[], Samples]:
    def read() -> Samples:
        def prepared(x: Array) -> Array:
            pixels = x[:, None].astype(np.float32)
            return (pixels / 255 - 0.1307) / 0.3081 if scaled else pixels

        with np.load(_DATA / "mnist.npz", allow_pickle=False) as z:
            test, labels = z["x_test"][:1000], z["y_test"][:1000]
            return _columns(name, prepared(z["x_train"][:2000]), prepared(test), labels)

    return read


def _cifar_raw() -> Samples:
    with np.load(_DATA / "cifar10.npz", allow_pickle=False) as z:
        train, test = (z[k].transpose(0, 3, 1, 2) for k in ("x_train", "x_test"))
        return _columns("input", train[:1000], test, z["y_test"])


def photographs(part: str, count: int, size: tuple[int, int]) -> Array:
    """Photographs of Imagenette in RGB, stretched to ``size``.

    Args:
        part: ``train`` or ``test``.
        count: how many, drawn at random.
        size: width and height.

    Returns:
        Pixels from 0 to 255, (count, height, width, 3).
    """
    from PIL import Image

    with np.load(_DATA / "imagenette.npz", allow_pickle=False) as z:
        data, at = z[f"{part}_jpeg"], z[f"{part}_offsets"]
    order = np.random.default_rng(0).permutation(len(at) - 1)[:count]
    files = list(pairwise(at))
    pictures = [
        Image.open(io.BytesIO(data[slice(*files[i])].tobytes())).convert("RGB") for i in order
    ]
    return np.stack([np.asarray(p.resize(size)) for p in pictures]).astype(np.float32)


def _pictures(
    name: str, prepare: Callable[[Array], Array], size: tuple[int, int], counts: tuple[int, int]
) -> Callable[[], Samples]:
    """Photographs stretched to ``size`` (width, height): train and test part."""

    def read() -> Samples:
        def part(key: str, count: int) -> Array:
            return prepare(photographs(key, count, size)).transpose(0, 3, 1, 2)

        return _columns(name, part("train", counts[0]), part("test", counts[1]))

    return read


def _spoken_digits() -> Samples:
    with np.load(_DATA / "spoken_digits.npz", allow_pickle=False) as z:
        train, test = (z[k][:, None] / 32768 * 8 for k in ("x_train", "x_test"))
        return _columns("input", train, test, z["y_test"])


def _speech() -> Array:
    with np.load(_DATA / "speech_wav16k.npz", allow_pickle=False) as z:
        wav: Array = z["wav"].astype(np.float32) / 32768
    return wav


def _pitch() -> Samples:
    frames = _speech()[: 1024 * 937].reshape(-1, 1024)
    frames = frames[frames.std(axis=1) > 0.01]  # those with a voice in them
    frames = (frames - frames.mean(1, keepdims=True)) / frames.std(1, keepdims=True)
    half = len(frames) // 2
    return _columns("input", frames[:half], frames[half:])


def _voice() -> list[Samples]:
    """Chunks of 512 samples behind 64 of context, and the state that the model had by then."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(SHARED / "models" / "silero_vad_16k.onnx"), providers=["CPUExecutionProvider"]
    )
    wav = np.concatenate([np.zeros(64, np.float32), _speech()])
    state, feeds = np.zeros((2, 1, 128), np.float32), []
    for at in range(0, 512 * 400, 512):
        feed = {"input": wav[None, at : at + 576], "state": state, "sr": np.array(16000)}
        feeds.append(feed)
        state = session.run(["stateN"], feed)[0]
    return feeds


def _toycar() -> Samples:
    with np.load(_DATA / "toycar_windows.npz", allow_pickle=False) as z:
        return _columns("input_1", z["x"][:128], z["x"][128:])


def _waifu(x: Array) -> Array:
    edge = ((0, 0), (7, 7), (7, 7), (0, 0))
    return np.pad(x / 255, edge, mode="edge")


def _as_it_is(x: Array) -> Array:
    return x


def _backwards(x: Array) -> Array:
    return x[..., ::-1] / 255


def _centred(x: Array) -> Array:
    return (x - 127) / 128


#: by the name of the file
REAL: dict[str, Real] = {
    **{
        name: Real(_known(name))
        for name in ("digits_mlp", "digits_vgg", "digits_resnet", "cifar10_resnet20",
                     "cifar10_resnet56", "cifar10_vgg_s")
    },
    "cifar10_vgg16_bn": Real(_known("cifar10_vgg_s", 500), 64),
    "cifar10_mlperf_resnet8_large": Real(_cifar_raw),
    "imagenet_mobilenetv2_1.0": Real(_known("imagenet_mobilenetv2_1.0", 200), 64),
    "imagenet_squeezenet11": Real(_known("imagenet_squeezenet11", 200), 64),
    "mnist_mlp_300_100": Real(_mnist("input")),
    "mnist_lenet5_caffe": Real(_mnist("input")),
    "mnist_cntk": Real(_mnist("Input3", scaled=False)),
    "superres_upconv7_photo_x2": Real(_pictures("input", _waifu, (96, 96), (16, 8)), 16),
    "style_candy": Real(_pictures("inputImage", _as_it_is, (224, 224), (16, 16)), 16),
    "style_candy_raw_opset7": Real(_pictures("inputImage", _as_it_is, (720, 720), (2, 2)), 2),
    "coco_fastestdet": Real(_pictures("input.1", _backwards, (352, 352), (64, 64)), 64),
    "face_ultralight_rfb320": Real(_pictures("input", _centred, (320, 240), (64, 64)), 64),
    "speech_commands_dscnn": Real(_known("speech_commands_dscnn")),
    "spoken_digits_m5_conv1d": Real(_spoken_digits),
    "pitch_crepe_tiny_conv1d": Real(_pitch),
    "silero_vad_16k": Real(_voice),
    "toycar_autoencoder_mlp": Real(_toycar, 128),
}  # fmt: skip
