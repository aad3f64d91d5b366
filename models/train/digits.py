"""Train and export the three reference nets of `models/`, and write their data.

    pip install -e ".[train]"
    python models/train/digits.py --out models

writes `digits_mlp.onnx`, `digits_vgg.onnx`, `digits_resnet.onnx` and `digits.npz`. Everything is
seeded: the same machine and library versions give the same files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
TEST_SAMPLES = 797
IMAGE_SIZE = 16
CLASSES = 10
OPSET = 17
DYNAMO_OPSET = 20
BATCH = 50


def conv(cin: int, cout: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    """Make a "same" convolution without bias, for a BatchNorm follows."""
    return nn.Conv2d(cin, cout, kernel, stride, padding=kernel // 2, bias=False)


def named(layers: dict[str, nn.Module]) -> nn.Sequential:
    """Chain the layers under names that the ONNX graph will carry."""
    return nn.Sequential(OrderedDict(layers))


def mlp() -> nn.Module:
    """Build Flatten and three Gemm: 256-400-200-10."""
    return named(
        {
            "flatten": nn.Flatten(),
            "fc1": nn.Linear(IMAGE_SIZE * IMAGE_SIZE, 400),
            "relu1": nn.ReLU(),
            "fc2": nn.Linear(400, 200),
            "relu2": nn.ReLU(),
            "fc3": nn.Linear(200, CLASSES),
        }
    )


def vgg() -> nn.Module:
    """Build six 3x3 Conv-BatchNorm-ReLU, a MaxPool after every second one, and a Gemm."""
    layers: dict[str, nn.Module] = {}
    channels = [1, 32, 32, 64, 64, 128, 128]
    for i, (cin, cout) in enumerate(pairwise(channels), start=1):
        layers[f"conv{i}"] = conv(cin, cout)
        layers[f"bn{i}"] = nn.BatchNorm2d(cout)
        layers[f"relu{i}"] = nn.ReLU()
        if i % 2 == 0:
            layers[f"pool{i}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(128 * (IMAGE_SIZE // 8) ** 2, CLASSES)
    return named(layers)


class BasicBlock(nn.Module):
    """Two 3x3 Conv-BatchNorm and a residual Add; a 1x1 shortcut where the stride is not 1."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(cin, cout, stride=stride)
        self.bn1 = nn.BatchNorm2d(cout)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(cout, cout)
        self.bn2 = nn.BatchNorm2d(cout)
        if stride == 1:
            self.shortcut = named({})
        else:
            projection = conv(cin, cout, kernel=1, stride=stride)
            self.shortcut = named({"conv": projection, "bn": nn.BatchNorm2d(cout)})
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two branches."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def resnet() -> nn.Module:
    """Build ResNet-20: a stem, three stages of three blocks (16, 32, 64 channels), a Gemm."""
    layers: dict[str, nn.Module] = {"conv": conv(1, 16), "bn": nn.BatchNorm2d(16)}
    layers["relu"] = nn.ReLU()
    for i, (cin, cout, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], start=1):
        layers[f"stage{i}"] = nn.Sequential(
            BasicBlock(cin, cout, stride), BasicBlock(cout, cout), BasicBlock(cout, cout)
        )
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(64, CLASSES)
    return named(layers)


@dataclass(frozen=True)
class Recipe:
    """How one net is built and trained.

    The weight decay is strong, to wear away the random initial weights: as in nets that trained
    for long, what is left is of low rank.
    """

    build: Callable[[], nn.Module]
    export: Callable[[nn.Module, str, Path], None]
    epochs: int
    peak_lr: float
    weight_decay: float


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 16, 16), scaled with the training part's mean and deviation, and labels."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def save(self, path: Path) -> None:
        """Write the calibration samples (unlabelled) and the held-out labelled samples."""
        arrays: dict[str, Any] = {
            "image": self.train_images.numpy(),
            "test.image": self.test_images.numpy(),
            "test.labels": self.test_labels.numpy(),
        }
        np.savez_compressed(path, **arrays)


def load_data() -> Digits:
    """Read scikit-learn's digits, enlarge them, split them by class, scale them."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = functional.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear")
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_SAMPLES, stratify=labels, random_state=SEED
    )
    images = (images - images[train].mean()) / images[train].std()
    targets = torch.tensor(labels, dtype=torch.int64)
    return Digits(images[train], targets[train], images[test], targets[test])


def augment(images: Tensor) -> Tensor:
    """Turn each image by up to 10 degrees and shift it by up to 2 pixels."""
    n = len(images)
    angle = (2 * torch.rand(n) - 1) * math.radians(10)
    shift = (2 * torch.rand(n, 2) - 1) * (2 / (IMAGE_SIZE / 2))
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train_net(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """Build and train one net on the training part alone; return it in inference mode."""
    torch.manual_seed(SEED)
    net = recipe.build()
    groups = [  # no decay of biases and BatchNorms
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_lr, total_steps=steps)
    for _ in range(recipe.epochs):
        for batch in torch.split(torch.randperm(len(images)), BATCH):
            logits = net(augment(images[batch]))
            loss = functional.cross_entropy(logits, labels[batch], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: nn.Module, name: str, path: Path) -> None:
    """Write `net` as ONNX with its BatchNormalization nodes kept and no trace of this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the TorchScript exporter
        torch.onnx.export(
            net,
            (torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BatchNorm into Conv
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        )
    save_clean(path, name)


def export_dynamo(net: nn.Module, name: str, path: Path) -> None:
    """Write `net` as ONNX by the exporter that PyTorch has by default since 2.9."""
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress
        torch.onnx.export(
            net,
            (torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),),
            path,
            dynamo=True,
            external_data=False,
            opset_version=DYNAMO_OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
        )
    save_clean(path, name)


def save_clean(path: Path, name: str) -> None:
    """Write a model again without traces of the exporter and of this machine, and check it."""
    model = onnx.load(path)
    model.producer_name = "onnx-lowrank models/train/digits.py"
    model.producer_version = ""
    graph = model.graph
    graph.name = name
    traced = [model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input]
    for part in [*traced, *graph.output]:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        # equal weights (two BatchNorm that meet in an Add) were merged
        if node.op_type == "Identity" and node.input[0] in weights:
            copy = graph.initializer.add()
            copy.CopyFrom(weights[node.input[0]])
            copy.name = node.output[0]
            graph.node.remove(node)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def count_correct(path: Path, images: np.ndarray, labels: np.ndarray) -> int:
    """Count the images that the ONNX file classifies rightly."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"image": images})[0])
    return int((logits.argmax(axis=1) == labels).sum())


def make(recipes: Mapping[str, Recipe], about: str, with_data: bool = False) -> None:
    """Train and export each net of `recipes` into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1])
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data = load_data()
    if with_data:
        data.save(out / "digits.npz")
    for name, recipe in recipes.items():
        start = time.perf_counter()
        net = train_net(recipe, data.train_images, data.train_labels)
        seconds = time.perf_counter() - start
        path = out / f"{name}.onnx"
        recipe.export(net, name, path)
        correct = count_correct(path, data.test_images.numpy(), data.test_labels.numpy())
        print(
            f"{name}: {100 * correct / TEST_SAMPLES:.2f} % ({correct}/{TEST_SAMPLES}), "
            f"{path.stat().st_size} bytes, trained in {seconds:.0f} s"
        )


if __name__ == "__main__":
    make(
        {
            "digits_mlp": Recipe(mlp, export, epochs=200, peak_lr=3e-3, weight_decay=1),
            "digits_vgg": Recipe(vgg, export, epochs=60, peak_lr=3e-3, weight_decay=3),
            "digits_resnet": Recipe(resnet, export, epochs=80, peak_lr=5e-3, weight_decay=3),
        },
        __doc__,
        with_data=True,
    )
