"""Labels as proof: what is no class of the model, or says nothing of it, is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from onnx_lowrank.engine.api import compress
from onnx_lowrank.engine.validate import validate
from onnx_lowrank.errors import DataError
from onnx_lowrank.judge.labels import class_ids, doubt, refuse_doubt
from onnx_lowrank.judge.requirement import Requirement
from onnx_lowrank.judge.scoring import scorer_for
from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm

Array = npt.NDArray[Any]
Capture = pytest.CaptureFixture[str]

RNG = np.random.default_rng(5)
X, GIVEN = fm.classified(400)  # and the classes that the original gives
CLASSES = 8

#: labels that say nothing, and what is said of them
EMPTY_LABELS: dict[str, tuple[Array, str]] = {
    "random": (RNG.integers(0, CLASSES, 400), "shows no more than always guessing class"),
    "shuffled": (RNG.permutation(GIVEN), "the labels may be of other classes or other samples"),
    "constant": (np.zeros(400, np.int64), "all {n} labels are 0"),
    "one less": ((GIVEN - 1) % CLASSES, r"labels \+ 1 agree with the original in \d+\.\d%"),
}
#: labels that cannot be counted, and what is said of them
NO_CLASSES: dict[str, tuple[Array, str]] = {
    "of other classes": (
        RNG.integers(100, 110, 400),
        r"hold 100, 101, 102, 103, \.\.\., but .*'y'",
    ),
    "negative": (
        np.where(np.arange(400) > 396, -1, GIVEN),
        "hold -1, but output 'y' has 8 classes",
    ),
    "from one": (
        GIVEN + 1,
        r"has 8 classes, 0 to 7: labels - 1 agree .* 100\.0% .*give labels - 1",
    ),
    "text": (np.array([f"class {g}" for g in GIVEN]), "the labels are text, .* or give a metric"),
    "bytes": (np.array([b"a%d" % g for g in GIVEN]), "the labels are text"),
    "one-hot": (np.eye(CLASSES)[GIVEN], r"float64 of the shape \(\d+, 8\), .*numpy\.argmax"),
    "fractions": (GIVEN / 2, "the labels are float64"),
}
ALL = {**EMPTY_LABELS, **NO_CLASSES}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_labels_that_are_no_classes(name: str) -> None:
    labels, said = NO_CLASSES[name]
    with pytest.raises(DataError, match=said):
        class_ids(labels, CLASSES, "y", GIVEN)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int32, np.uint64])
def test_labels_that_are(dtype: Any) -> None:
    for labels in (GIVEN.astype(dtype), GIVEN.astype(dtype)[:, None]):
        np.testing.assert_array_equal(class_ids(labels, CLASSES, "y", GIVEN), GIVEN)
    assert doubt(GIVEN, GIVEN) == ""


@pytest.mark.parametrize("name", EMPTY_LABELS)
def test_labels_that_say_nothing(name: str) -> None:
    labels, said = EMPTY_LABELS[name]
    with pytest.raises(DataError, match=said.format(n=400)):
        refuse_doubt(labels, GIVEN)


def test_weak_originals_are_told_from_guesses_by_enough_samples() -> None:
    labels = RNG.integers(0, 100, 3000)
    right = RNG.random(3000) < 0.1
    predicted = np.where(right, labels, RNG.integers(0, 100, 3000))
    assert doubt(labels, predicted) == ""
    assert "no more than always guessing" in doubt(labels[:20], predicted[:20])


def test_frequent_classes_are_no_merit() -> None:
    labels = np.where(np.arange(1000) < 950, 0, 1)
    assert "(950)" in doubt(labels, np.zeros(1000, int))
    knowing = np.where(np.arange(1000) < 970, 0, 1)
    assert doubt(labels, knowing) == ""


def test_chance_is_seldom_taken_for_knowledge() -> None:
    seen = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        seen += doubt(random.integers(0, 10, 100), random.integers(0, 10, 100)) == ""
    assert seen <= 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    onnx.save(fm.classifier(), tmp_path / "in.onnx")
    return tmp_path


def with_labels(folder: Path, labels: Array) -> str:
    path = folder / "labelled.npz"
    held: dict[str, Any] = {"x": X[:200], "test.x": X[200:], "test.labels": labels[200:]}
    np.savez(path, **held)
    return str(path)


@pytest.mark.parametrize("name", ALL)
def test_gates_refuse_them(name: str, folder: Path, capsys: Capture) -> None:
    labels, said = ALL[name]
    data, model, out = with_labels(folder, labels), str(folder / "in.onnx"), folder / "out.onnx"
    compress = ["compress", model, str(out), "--calib", data, "--cache", "", "--max-drop", "1%"]
    for argv in (compress, ["validate", model, model, "--data", data, "-q", "--max-drop", "1%"]):
        assert fm.command(argv) == 4
        stdout, err = capsys.readouterr()
        assert (stdout, err.count("\n")) == ("", 1)
        with pytest.raises(DataError, match=said.format(n=200)):
            raise DataError(err)
    assert not out.exists()


@pytest.mark.parametrize("name", ["of other classes", "negative", "from one"])
def test_labels_of_other_classes_stop_a_run_before_the_work(
    name: str, folder: Path, capsys: Capture
) -> None:
    data = with_labels(folder, NO_CLASSES[name][0])
    model, out = str(folder / "in.onnx"), str(folder / "out.onnx")
    for argv in (["compress", model, out], ["sweep", model]):
        assert fm.command([*argv, "--calib", data, "--cache", ""]) == 4
        assert "label" in capsys.readouterr().err


@pytest.mark.parametrize("name", EMPTY_LABELS)
def test_reports_say_it(name: str, folder: Path, capsys: Capture) -> None:
    labels, said = EMPTY_LABELS[name]
    data, model, report = with_labels(folder, labels), str(folder / "in.onnx"), folder / "r.json"
    argv = ["compress", model, str(folder / "out.onnx"), "--calib", data, "--target", "macs=0.9"]
    assert fm.command([*argv, "--cache", "", "--threads", "1", "--report", str(report)]) == 0
    note = "the accuracy says nothing about the models: "
    assert f"note: {note}" in capsys.readouterr().out
    notes = json.loads(report.read_text(encoding="utf-8"))["notes"]
    (found,) = [n for n in notes if n.startswith(note)]
    with pytest.raises(DataError, match=said.format(n=200)):
        raise DataError(found)
    assert fm.command(["validate", model, model, "--data", data]) == 0
    assert f"note: {note}" in capsys.readouterr().out
    checks = validate(model, model, data)
    assert checks.accuracy is not None
    assert checks.accuracy.doubt


@pytest.mark.parametrize("name", ["text", "bytes", "one-hot", "fractions"])
def test_labels_that_nobody_counts_are_no_error(name: str, folder: Path) -> None:
    labels, said = NO_CLASSES[name]
    checks = validate(folder / "in.onnx", folder / "in.onnx", with_labels(folder, labels))
    assert checks.accuracy is None
    (note,) = checks.notes
    with pytest.raises(DataError, match=f"accuracy was not counted: .*{said}"):
        raise DataError(note)


def test_good_labels_say_nothing_more(folder: Path) -> None:
    checks = validate(folder / "in.onnx", folder / "in.onnx", with_labels(folder, GIVEN))
    assert checks.accuracy is not None
    assert (checks.accuracy.reference, checks.accuracy.doubt) == (1.0, "")
    assert checks.notes == ()


# metrics of the user


def judged(labels: Any, metric: Any) -> float:
    proto = fm.classifier()
    data = fm.dataset(proto, {"x": X} if labels is None else {"x": X, "labels": labels})
    requirement = Requirement("drop", 0.1, metric)
    return scorer_for(requirement, load(proto), data, fm.ONE_THREAD, 64).score(load(proto)).value


@pytest.mark.parametrize("name", ALL)
def test_metrics_read_labels_of_any_kind(name: str) -> None:
    labels = ALL[name][0]
    seen: list[Array] = []

    def metric(outputs: Mapping[str, Array], found: Array) -> float:
        seen.append(found)
        assert len(found) == len(outputs["y"])
        return 1.0

    assert judged(labels, metric) == 0
    np.testing.assert_array_equal(seen[0], labels)
    assert seen[0].dtype.kind == np.asarray(labels).dtype.kind


@pytest.mark.full
def test_metrics_may_ask_for_the_inputs() -> None:
    def keyword(outputs: Mapping[str, Array], labels: Any, *, inputs: Mapping[str, Array]) -> float:
        assert labels is None
        again = fm.run(fm.classifier(), {"x": inputs["x"]})["y"]
        return -float(np.abs(again - outputs["y"]).max())

    def third(outputs: Mapping[str, Array], labels: Any, inputs: Mapping[str, Array]) -> float:
        return keyword(outputs, labels, inputs=inputs)

    for metric in (keyword, third):
        assert judged(None, metric) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.full
def test_a_search_by_a_metric_of_texts(folder: Path) -> None:
    (folder / "own.py").write_text(
        "import numpy as np\n"
        "def right(outputs, labels, inputs):\n"
        "    assert inputs['x'].shape == (len(labels), 64)\n"
        "    texts = np.array([f'class {k}' for k in outputs['y'].argmax(1)])\n"
        "    return float((texts == labels).mean())\n"
    )
    data = with_labels(folder, NO_CLASSES["text"][0])
    argv = ["compress", str(folder / "in.onnx"), str(folder / "out.onnx"), "--calib", data]
    argv += ["--max-drop", "0.2", "--metric", f"{folder / 'own.py'}:right", "--cache", "", "-q"]
    assert fm.command([*argv, "--threads", "1"]) == 0


def test_agreement_with_one_class_alone_proves_nothing() -> None:
    proto = fm.classifier()
    for tensor in proto.graph.initializer:
        if tensor.name == "b2":
            bias = onnx.numpy_helper.to_array(tensor).copy()
            bias[0] += 1e3
            tensor.CopyFrom(onnx.numpy_helper.from_array(bias, "b2"))
    with pytest.raises(DataError, match="gives all 80 samples class 0, so any model that always"):
        fm.quick_compress(proto, calib={"x": X}, min_agreement=0.9)


@pytest.mark.full
def test_an_embedding_has_no_classes(tmp_path: Path) -> None:
    """As many numbers as there may be speakers; their labels are no numbers of classes."""
    nodes = [
        onnx.helper.make_node("Gemm", ["x", "w"], ["h"]),
        onnx.helper.make_node("LpNormalization", ["h"], ["y"], axis=-1, p=2),
    ]
    weights = {"w": RNG.standard_normal((40, 30)).astype(np.float32)}
    net = fm.build(nodes, {"x": ["N", 40]}, {"y": ["N", 30]}, weights)
    x = RNG.standard_normal((60, 40)).astype(np.float32)
    speakers = RNG.integers(100, 2000, 60)
    found = validate(net, net, {"x": x, "labels": speakers}, threads=1)
    assert found.accuracy is None
    assert any("say no classes" in note for note in found.notes)
    result = compress(
        net, calib={"x": x, "test.x": x, "test.labels": speakers}, target="macs=0.8", passes="svd",
        force=True, threads=1, cache="",
    )  # fmt: skip
    assert result.report.validation.accuracy is None
