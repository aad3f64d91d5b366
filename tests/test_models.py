"""The nets in models/ are what their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

MODELS = Path(__file__).resolve().parents[1] / "models"
NETS = sorted(MODELS.glob("*.onnx"))
BATCH_NORMS = {
    "digits_mlp": 0, "digits_vgg": 6, "digits_resnet": 21, "digits_vit": 0, "digits_lstm": 0
}  # fmt: skip
#: nets of the exporter that PyTorch has today
DYNAMO = ("digits_vit", "digits_lstm")

each_net = pytest.mark.parametrize("path", NETS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def data() -> dict[str, np.ndarray]:
    with np.load(MODELS / "digits.npz", allow_pickle=False) as archive:
        return dict(archive)


def card_fact(path: Path, row: str) -> str:
    """The first word of a row of the card's table, without thousands separators."""
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    match = re.search(rf"^\| {row} \| (\S+)", card, re.MULTILINE)
    assert match, f"{path.stem}.md has no row {row!r}"
    return match[1].replace(",", "")


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"image": images})[0])


def test_all_nets_are_here_and_small() -> None:
    assert {path.stem for path in NETS} == set(BATCH_NORMS)
    sizes = [path.stat().st_size for path in [*NETS, MODELS / "digits.npz"]]
    assert max(sizes) < 2_000_000
    assert sum(sizes) < 8_000_000


def test_data(data: dict[str, np.ndarray]) -> None:
    assert {name: (array.shape, array.dtype.name) for name, array in data.items()} == {
        "image": ((1000, 1, 16, 16), "float32"),
        "test.image": ((797, 1, 16, 16), "float32"),
        "test.labels": ((797,), "int64"),
    }
    assert abs(data["image"].mean()) < 1e-5
    assert abs(data["image"].std() - 1) < 1e-5
    train = {image.tobytes() for image in data["image"]}
    assert not any(image.tobytes() in train for image in data["test.image"])


@each_net
def test_graph(path: Path) -> None:
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [
        ("", 20 if path.stem in DYNAMO else 17)
    ]
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    assert len(norms) == BATCH_NORMS[path.stem]
    assert all(len(node.output) == 1 for node in norms), "in training mode"
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


@each_net
def test_card(path: Path) -> None:
    graph = onnx.load(path).graph
    parameters = sum(int(np.prod(weight.dims)) for weight in graph.initializer)
    norms = sum(node.op_type == "BatchNormalization" for node in graph.node)
    assert card_fact(path, "Parameters") == str(parameters)
    assert card_fact(path, "BatchNormalization nodes") == str(norms)
    assert card_fact(path, "File size") == str(path.stat().st_size)


@each_net
def test_accuracy_is_the_stated_one(path: Path, data: dict[str, np.ndarray]) -> None:
    right = run(path, data["test.image"]).argmax(axis=1) == data["test.labels"]
    accuracy = f"{100 * right.mean():.2f}"
    assert card_fact(path, "Accuracy") == accuracy
    table = (MODELS / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \[`{path.stem}`\].* {re.escape(accuracy)} % \|$", table, re.MULTILINE)


@each_net
@pytest.mark.parametrize("batch", [1, 5])
def test_batch_is_free(path: Path, batch: int, data: dict[str, np.ndarray]) -> None:
    assert run(path, data["image"][:batch]).shape == (batch, 10)
