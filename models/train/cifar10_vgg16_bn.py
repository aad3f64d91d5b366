"""Train and export VGG-16 with BatchNormalization for CIFAR-10, the stand-in for a big net.

    pip install -e ".[train]"
    python models/train/cifar10_vgg16_bn.py --data cifar-10-batches-bin --out cifar10_vgg16_bn.onnx

`--data` is the folder of the binary version of CIFAR-10 (https://www.cs.toronto.edu/~kriz/cifar.html:
`data_batch_*.bin`, `test_batch.bin`), or an archive with `x_train` and `x_test` (N, 32, 32, 3) of
uint8 and `y_train` and `y_test`. Runs on a GPU where there is one: minutes there, hours on a CPU.
The weights (59 MB) are too large for this repository.

Reference: Simonyan & Zisserman 2015; the form for CIFAR-10 is that of Liu & Deng 2015 without
dropout: 13 convolutions, one linear layer.
"""

from __future__ import annotations

import argparse
import math
import warnings
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
OPSET = 17
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
BATCH = 128


@dataclass(frozen=True)
class Cifar10:
    """Images (n, 3, 32, 32) of uint8, and labels."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def read(path: Path) -> Cifar10:
    """Read the binary version, or an archive."""
    if path.is_dir():
        batches = sorted(path.glob("data_batch_*.bin"))
        if not batches or not (path / "test_batch.bin").is_file():
            raise SystemExit(f"{path} holds no data_batch_*.bin and test_batch.bin")
        train, test = ([_binary(b) for b in some] for some in (batches, [path / "test_batch.bin"]))
        images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
        parts = [images, labels, *test[0]]
    else:
        with np.load(path, allow_pickle=False) as z:
            parts = [z["x_train"].transpose(0, 3, 1, 2), z["y_train"],
                     z["x_test"].transpose(0, 3, 1, 2), z["y_test"]]  # fmt: skip
    tensors = [torch.from_numpy(np.ascontiguousarray(p)) for p in parts]
    return Cifar10(tensors[0], tensors[1].long(), tensors[2], tensors[3].long())


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    rows = np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


def vgg16_bn() -> nn.Module:
    """Build five stages of 3x3 Conv-BatchNorm-ReLU, a MaxPool after each, and a linear layer."""
    widths = [3, *(width for width, count in STAGES for _ in range(count))]
    ends = set(np.cumsum([count for _, count in STAGES]).tolist())
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=1):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)]
        layers.append(nn.ReLU())
        if number in ends:
            layers.append(nn.MaxPool2d(2))
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


def scaled(images: Tensor) -> Tensor:
    """Pixels as the net reads them."""
    mean, std = (torch.tensor(v, device=images.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def augment(images: Tensor) -> Tensor:
    """Flip half of the images, shift each by up to four pixels."""
    n = len(images)
    flipped = torch.rand(n, device=images.device) < 0.5
    images = torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)
    padded = functional.pad(images, (4, 4, 4, 4))
    at = torch.randint(0, 9, (2, n, 1), device=images.device) + torch.arange(
        32, device=images.device
    )
    rows, columns = at[0].view(n, 1, 32, 1), at[1].view(n, 1, 1, 32)
    index = torch.arange(n, device=images.device).view(n, 1, 1, 1)
    channels = torch.arange(3, device=images.device).view(1, 3, 1, 1)
    return padded[index, channels, rows, columns]


def train_net(data: Cifar10, epochs: int, device: torch.device) -> nn.Module:
    """Train on the training part alone; return the net in inference mode."""
    torch.manual_seed(SEED)
    net = vgg16_bn().to(device)
    images, labels = scaled(data.train_images.to(device)), data.train_labels.to(device)
    steps = epochs * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in torch.split(torch.randperm(len(images), device=device), BATCH):
            loss = functional.cross_entropy(net(augment(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch}: loss {torch.stack(losses).mean():.3f}", flush=True)
    return net.eval()


def export(net: nn.Module, path: Path) -> None:
    """Write the net with its BatchNormalization nodes kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the TorchScript exporter
        torch.onnx.export(
            net.cpu(),
            (torch.zeros(1, 3, 32, 32),),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BatchNorm into Conv
            do_constant_folding=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )
    model = onnx.load(path)
    model.producer_name, model.producer_version = "onnx-lowrank models/train", ""
    model.graph.name = path.stem
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def accuracy(path: Path, data: Cifar10) -> float:
    """Part of the test images that the ONNX file classifies rightly."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    right = 0
    for images, labels in zip(
        torch.split(data.test_images, 250), torch.split(data.test_labels, 250), strict=True
    ):
        logits = np.asarray(session.run(None, {"input": scaled(images).numpy()})[0])
        right += int((logits.argmax(axis=1) == labels.numpy()).sum())
    return right / len(data.test_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("cifar10_vgg16_bn.onnx"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--limit", type=int, help="use so many training images alone, to try it")
    arguments = parser.parse_args()
    data = read(arguments.data)
    if arguments.limit:
        few = slice(arguments.limit)
        data = Cifar10(data.train_images[few], data.train_labels[few],
                       data.test_images[few], data.test_labels[few])  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = train_net(data, arguments.epochs, device)
    export(net, arguments.out)
    print(f"{arguments.out}: {accuracy(arguments.out, data):.2%} of {len(data.test_labels)} images")


if __name__ == "__main__":
    main()
