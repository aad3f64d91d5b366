"""Small models and data in the place of those that readers of the recipes bring themselves.

Weights are random but redundant (of low rank), as trained ones are, so that the commands of a page
can do what they say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper
from PIL import Image

from tests import fixtures_models as fm

__all__ = ["STAND_INS"]

Array = npt.NDArray[np.float32]
Node = onnx.NodeProto
node = helper.make_node


class Weights:
    """Random weights of low rank, collected by name."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self.arrays: dict[str, npt.NDArray[np.generic]] = {}

    def add(self, name: str, *shape: int, rank: int = 4, gain: float = 1.5) -> str:
        """A weight whose first axis is its outputs, of variance ``gain ** 2 / inputs``."""
        outputs, inputs = shape[0], int(np.prod(shape[1:]))
        rank = min(rank, outputs, inputs)
        thin, wide = (self._random.normal(size=s) for s in ((outputs, rank), (rank, inputs)))
        weight = thin @ wide / np.sqrt(rank) + 0.02 * self._random.normal(size=(outputs, inputs))
        self.arrays[name] = (gain * weight / np.sqrt(inputs)).reshape(shape).astype(np.float32)
        return name

    def transposed(self, name: str, inputs: int, outputs: int, rank: int = 4) -> str:
        """A weight for MatMul, ``(inputs, outputs)``."""
        self.add(name, outputs, inputs, rank=rank)
        self.arrays[name] = np.ascontiguousarray(self.arrays[name].T)
        return name


def convolutions(
    weights: Weights, x: str, channels: list[int], strides: list[int], rank: int = 4
) -> list[Node]:
    """Convolutions with ReLU; the last result is ``relu<number>``."""
    made: list[Node] = []
    for number, stride in enumerate(strides, 1):
        weight = weights.add(f"w{number}", channels[number], channels[number - 1], 3, 3, rank=rank)
        options = {"strides": [stride] * 2, "pads": [1] * 4}
        made.append(node("Conv", [x, weight], [f"conv{number}"], f"conv{number}", **options))
        x = f"relu{number}"
        made.append(node("Relu", [f"conv{number}"], [x], x))
    return made


def pictures(folder: Path, count: int, size: tuple[int, int], seed: int) -> None:
    """Smooth colour pictures of a size, in pixels."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for number in range(count):
        coarse = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
            folder / f"{number}.png"
        )


def classifier(folder: Path) -> None:
    weights = Weights(1)
    nodes = convolutions(weights, "x", [3, 16, 32, 32], [4, 4, 2])
    nodes += [
        node("GlobalAveragePool", ["relu3"], ["pooled"]),
        node("Flatten", ["pooled"], ["features"]),
        node("Gemm", ["features", weights.add("head", 5, 32, gain=60)], ["y"], "head", transB=1),
    ]
    model = fm.build(nodes, {"x": ["N", 3, 224, 224]}, {"y": ["N", 5]}, weights.arrays)
    onnx.save(model, folder / "classifier.onnx")
    pictures(folder / "images", 60, (288, 256), 2)


def detector(folder: Path) -> None:
    """Boxes and scores behind a Sigmoid in one output ``(N, 4 + 3, positions)``."""
    weights = Weights(3)
    nodes = convolutions(weights, "images", [3, 16, 32, 32], [4, 4, 2])
    for name, channels in (("boxes", 4), ("scores", 3)):
        weight = weights.add(f"head.{name}", channels, 32, 1, 1, gain=4)
        weights.arrays[f"flat.{name}"] = np.array([0, channels, -1], np.int64)
        nodes += [
            node("Conv", ["relu3", weight], [f"map.{name}"], f"head.{name}"),
            node("Reshape", [f"map.{name}", f"flat.{name}"], [name]),
        ]
    nodes += [
        node("Sigmoid", ["scores"], ["chances"]),
        node("Concat", ["boxes", "chances"], ["output0"], axis=1),
    ]
    shape = {"images": ["N", 3, "height", "width"]}
    model = fm.build(nodes, shape, {"output0": ["N", 7, "P"]}, weights.arrays)
    onnx.save(model, folder / "detector.onnx")
    pictures(folder / "pictures", 24, (360, 300), 4)


def recogniser(folder: Path) -> None:
    """Scores of a blank and ten digits along a line; its last layer knows what digits look like."""
    weights, random = Weights(5), np.random.default_rng(6)
    nodes = convolutions(weights, "x", [3, 16, 32], [2, 4], rank=12)
    nodes += [
        node("ReduceMean", ["relu2"], ["columns"], axes=[2], keepdims=0),
        node("Transpose", ["columns"], ["steps"], perm=[0, 2, 1]),
        node("MatMul", ["steps", weights.transposed("hidden", 32, 64, rank=16)], ["h"], "hidden"),
        node("Relu", ["h"], ["r"]),
    ]
    shape = {"x": ["N", 3, 48, 96]}
    body = fm.build(nodes, shape, {"r": ["N", 12, 64]}, weights.arrays)
    classes = random.integers(0, 11, (250, 12))
    glyphs = random.normal(size=(11, 3, 6, 1)).repeat(8, axis=2).repeat(8, axis=3)
    lines = np.concatenate(glyphs[classes].transpose(1, 0, 2, 3, 4), axis=3)
    lines = (lines + 0.05 * random.normal(size=lines.shape)).astype(np.float32)
    (features,) = fm.run(body, {"x": lines}).values()
    wanted = 8 * np.eye(11)[classes].reshape(-1, 11)
    head = np.linalg.lstsq(features.reshape(-1, 64), wanted, rcond=1e-4)[0]
    weights.arrays["head"] = head.astype(np.float32)
    nodes += [
        node("MatMul", ["r", "head"], ["scores"], "head"),
        node("Softmax", ["scores"], ["y"], axis=-1),
    ]
    model = fm.build(nodes, shape, {"y": ["N", 12, 11]}, weights.arrays)
    onnx.save(model, folder / "recogniser.onnx")
    (found,) = fm.run(model, {"x": lines}).values()
    np.savez(folder / "lines.npz", x=lines, labels=[digits(scores) for scores in found])


def digits(scores: Array) -> str:
    best = scores.argmax(-1)
    changes = [k for k, before in zip(best, [-1, *best], strict=False) if k not in (0, before)]
    return "".join("-0123456789"[k] for k in changes)


def encoder(folder: Path) -> None:
    """One block of attention with a mask, and of two dense layers, over embedded tokens."""
    weights, width = Weights(7), 32
    weights.add("table", 100, width, gain=6)
    for name in ("q", "k", "v", "o"):
        weights.transposed(name, width, width)
    weights.transposed("up", width, 96)
    weights.transposed("down", 96, width)
    weights.arrays |= {
        "scale": np.array(1 / np.sqrt(width), np.float32),
        "axis": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "far": np.array(-1e4, np.float32),
    }
    nodes = [
        node("Gather", ["table", "input_ids"], ["x"]),
        *(node("MatMul", ["x", n], [f"{n}s"], f"attention/{n}") for n in ("q", "k", "v")),
        node("Transpose", ["ks"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["qs", "kt"], ["products"]),
        node("Mul", ["products", "scale"], ["scaled"]),
        node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["mask", "axis"], ["rows"]),
        node("Sub", ["one", "rows"], ["hidden"]),
        node("Mul", ["hidden", "far"], ["penalty"]),
        node("Add", ["scaled", "penalty"], ["masked"]),
        node("Softmax", ["masked"], ["shares"], axis=-1),
        node("MatMul", ["shares", "vs"], ["mixed"]),
        node("MatMul", ["mixed", "o"], ["out"], "attention/o"),
        node("Add", ["x", "out"], ["sum"]),
        node("MatMul", ["sum", "up"], ["wide"], "mlp/up"),
        node("Relu", ["wide"], ["act"]),
        node("MatMul", ["act", "down"], ["narrow"], "mlp/down"),
        node("Add", ["sum", "narrow"], ["last_hidden_state"]),
    ]
    axes = ["N", "T"]
    inputs = ("input_ids", "attention_mask")
    model = fm.build(
        nodes, dict.fromkeys(inputs), {"last_hidden_state": [*axes, width]}, weights.arrays
    )
    del model.graph.input[:]
    for name in inputs:
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, axes))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "encoder.onnx")
    random = np.random.default_rng(8)
    lengths = random.integers(4, 13, (200, 1))
    mask = (np.arange(12) < lengths).astype(np.int64)
    ids = random.integers(1, 100, mask.shape) * mask
    np.savez(folder / "sentences.npz", input_ids=ids, attention_mask=mask)


def denoiser(folder: Path) -> None:
    """A GRU between two dense layers, and a mask behind a Sigmoid."""
    weights, states = Weights(9), 32
    for name, inputs in (("gates", states), ("again", states)):
        weights.add(name, 3 * states, inputs)
        weights.arrays[name] = weights.arrays[name][None]
    weights.transposed("first", 24, states)
    weights.transposed("last", states, 24)
    weights.arrays["direction"] = np.array([1], np.int64)
    nodes = [
        node("MatMul", ["frames", "first"], ["f"], "first"),
        node("Relu", ["f"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0, 2]),
        node("GRU", ["t", "gates", "again"], ["s"], "gru", hidden_size=states),
        node("Squeeze", ["s", "direction"], ["states"]),
        node("Transpose", ["states"], ["back"], perm=[1, 0, 2]),
        node("MatMul", ["back", "last"], ["scores"], "last"),
        node("Sigmoid", ["scores"], ["mask"]),
    ]
    axes = ["N", "T", 24]
    model = fm.build(nodes, {"frames": axes}, {"mask": axes}, weights.arrays)
    onnx.save(model, folder / "denoiser.onnx")
    random = np.random.default_rng(10)
    coarse = random.normal(size=(80, 6, 24))
    np.savez(folder / "frames.npz", frames=coarse.repeat(5, axis=1).astype(np.float32))


#: by the name of a recipe, what makes its models and data in a folder
STAND_INS: dict[str, Callable[[Path], None]] = {
    "classifier.md": classifier,
    "detector.md": detector,
    "ocr.md": recogniser,
    "text-encoder.md": encoder,
    "speech.md": denoiser,
}
