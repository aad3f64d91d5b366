"""What outputs mean: found from the graph and the numbers, or as the user says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper

from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.judge.judge import AS_FOUND, Judge, Judging
from onnx_lowrank.judge.reading import Reading
from onnx_lowrank.judge.readings import parse_kinds, readings_of
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.samples.dataset import input_specs, load_dataset
from tests import fixtures_models as fm

Array = npt.NDArray[Any]
WIDTH, CLASSES, STEPS, SAMPLES = 6, 7, 5, 24


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def judge_of(
    nodes: Sequence[NodeProto],
    x: Array,
    weights: Mapping[str, Array] | None = None,
    judging: Judging = AS_FOUND,
    labels: Array | None = None,
    outputs: Sequence[str] = ("y",),
) -> Judge:
    model = load(net(nodes, x, weights, outputs))
    data = load_dataset({"x": x} | ({} if labels is None else {"labels": labels}),
                        input_specs(model))  # fmt: skip
    return Judge(model, data, fm.ONE_THREAD, 8, judging)


def net(
    nodes: Sequence[NodeProto],
    x: Array,
    weights: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
) -> ModelProto:
    shape = ["N", *x.shape[1:]]
    made = fm.build(nodes, {"x": shape}, dict.fromkeys(outputs), dict(weights or {}))
    whole = {n.output[0] for n in nodes if n.op_type == "ArgMax"}
    for output in made.graph.output:
        if output.name in whole:
            output.type.tensor_type.elem_type = TensorProto.INT64
    return made


def node(op: str, inputs: str, output: str = "y", **attributes: Any) -> NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), name=f"{op}_{output}", **attributes)


def kinds(judge: Judge) -> list[tuple[str, str, int]]:
    return [(r.label, r.kind, r.axis) for r in judge.readings]


VECTORS = numbers(SAMPLES, WIDTH)
SEQUENCES = numbers(SAMPLES, STEPS, WIDTH)
MAPS = numbers(SAMPLES, WIDTH, 4, 4)
DECIDED = {"w": numbers(WIDTH, CLASSES, seed=1, scale=4.0)}
FLAT = {"w": numbers(WIDTH, CLASSES, seed=1, scale=0.1)}
KERNEL = {"w": numbers(CLASSES, WIDTH, 1, 1, seed=1, scale=4.0)}

TABLE = {
    "probabilities": ([node("Softmax", "x", axis=-1)], VECTORS, {}, [("y", "kl", -1)]),
    "of each step": ([node("Softmax", "x", axis=-1)], SEQUENCES, {}, [("y", "kl", -1)]),
    "along another axis": ([node("Softmax", "x", axis=1)], MAPS, {}, [("y", "kl", -3)]),
    "logarithms": ([node("LogSoftmax", "x", axis=-1)], VECTORS, {}, [("y", "kl", -1)]),
    "moved": (
        [node("Softmax", "x", "p", axis=-1), node("Transpose", "p", perm=[0, 2, 1])],
        SEQUENCES, {}, [("y", "kl", -2)],
    ),
    "scores": ([node("MatMul", "x w")], VECTORS, DECIDED, [("y", "kl", -1)]),
    "scores of each step": ([node("MatMul", "x w")], SEQUENCES, DECIDED, [("y", "kl", -1)]),
    "scores in maps": ([node("Conv", "x w")], MAPS, KERNEL, [("y", "kl", -3)]),
    "scores pooled": (
        [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "p"), node("Flatten", "p")],
        MAPS, {"w": 3 * KERNEL["w"]}, [("y", "kl", -1)],
    ),
    "an embedding": ([node("MatMul", "x w")], VECTORS, FLAT, [("y", "l2", -1)]),
    "not behind a layer": ([node("Tanh", "x")], 9 * VECTORS, {}, [("y", "l2", -1)]),
    "as wide as the input": (
        [node("MatMul", "x w")], VECTORS, {"w": numbers(WIDTH, WIDTH, scale=4.0)},
        [("y", "l2", -1)],
    ),
    "a picture": (
        [node("Conv", "x w")], MAPS, {"w": numbers(3, WIDTH, 1, 1, scale=9.0)}, [("y", "l2", -3)],
    ),
    "directions": (
        [node("LpNormalization", "x", axis=-1, p=2)], VECTORS, {}, [("y", "cosine", -1)],
    ),
    "a map": ([node("Sigmoid", "x")], MAPS, {}, [("y", "bernoulli", -3)]),
    "boxes and scores": (
        [node("Sigmoid", "x", "s"), node("Tanh", "x", "b"), node("Concat", "b s", axis=1)],
        SEQUENCES, {},
        [(f"y[..., 0:{STEPS}, :]", "l2", -2), (f"y[..., {STEPS}:{2 * STEPS}, :]", "bernoulli", -2)],
    ),
    "boxes and scores, moved": (
        [node("Sigmoid", "x", "s"), node("Tanh", "x", "b"), node("Concat", "s b", "c", axis=1),
         node("Transpose", "c", perm=[0, 2, 1])],
        SEQUENCES, {},
        [(f"y[..., 0:{STEPS}]", "bernoulli", -1), (f"y[..., {STEPS}:{2 * STEPS}]", "l2", -1)],
    ),
    "scores and boxes out of one Sigmoid": (
        [node("Sigmoid", "x", "s"), node("Split", "s", "a b", axis=2), node("Tanh", "a", "t"),
         node("Concat", "t b", axis=2)],
        SEQUENCES, {},
        [(f"y[..., 0:{WIDTH // 2}]", "l2", -1), (f"y[..., {WIDTH // 2}:{WIDTH}]", "bernoulli", -1)],
    ),
    "two scales, parted alike": (
        [node("Sigmoid", "x", "s"), node("Tanh", "x", "b"), node("Concat", "b s", "one", axis=2),
         node("Concat", "b s", "two", axis=2), node("Concat", "one two", axis=1)],
        SEQUENCES, {},
        [(f"y[..., 0:{WIDTH}]", "l2", -1), (f"y[..., {WIDTH}:{2 * WIDTH}]", "bernoulli", -1)],
    ),
    "whole numbers": ([node("ArgMax", "x", axis=1)], VECTORS, {}, [("y", "equal", -1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_what_an_output_means_is_found(name: str) -> None:
    nodes, x, weights, expected = TABLE[name]
    assert kinds(judge_of(nodes, x, weights)) == expected


def test_with_class_numbers_a_vector_is_class_scores() -> None:
    labels = np.arange(SAMPLES) % CLASSES
    found = judge_of([node("MatMul", "x w")], VECTORS, FLAT, labels=labels)
    assert kinds(found) == [("y", "kl", -1)]


def test_the_same_class_for_all_samples_shows_no_class_scores() -> None:
    weights = {**DECIDED, "b": np.array([99.0] + [0.0] * (CLASSES - 1), np.float32)}
    found = judge_of([node("MatMul", "x w", "m"), node("Add", "m b")], VECTORS, weights)
    assert kinds(found) == [("y", "l2", -1)]


def test_whole_numbers_count_where_nothing_else_does() -> None:
    nodes = [node("ArgMax", "x", "i", axis=1), node("Tanh", "x", "y")]
    assert kinds(judge_of(nodes, VECTORS, outputs=("i", "y"))) == [
        ("i", "equal", -1), ("y", "l2", -1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "kind", "axis"),
    [("y=l2", "l2", -3), ("y=cosine@1", "cosine", -3), ("y=kl@-1", "kl", -1),
     ("y=bernoulli", "bernoulli", -3)],
)  # fmt: skip
def test_the_user_says_what_an_output_means(text: str, kind: str, axis: int) -> None:
    found = judge_of([node("Sigmoid", "x")], MAPS, judging=Judging(parse_kinds(text)))
    assert kinds(found) == [("y", kind, axis)]


def test_an_output_may_be_left_out() -> None:
    assert kinds(judge_of([node("Tanh", "x")], MAPS, judging=Judging({"y": "none"}))) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("y", "write OUTPUT=KIND"), ("y=best", "a kind of kl, bernoulli"), ("=kl", "OUTPUT=KIND"),
     ("y=kl@last", "axis 'last' is not a whole number")],
)  # fmt: skip
def test_kinds_in_another_form(text: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        parse_kinds(text)


@pytest.mark.parametrize(
    ("judging", "said"),
    [
        (Judging({"z": "kl"}), r"no output of the model is called 'z'; it has 'y'"),
        (Judging({"y": "kl@7"}), r"the output has 4 axes only"),
    ],
)
def test_kinds_that_do_not_fit(judging: Judging, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        judge_of([node("Tanh", "x")], MAPS, judging=judging)


def test_whole_numbers_have_no_divergence() -> None:
    with pytest.raises(OptionError, match="write y=equal or y=none"):
        judge_of([node("ArgMax", "x", axis=1)], VECTORS, judging=Judging({"y": "kl"}))


def test_a_function_of_the_user() -> None:
    def loss(
        reference: Mapping[str, Array], outputs: Mapping[str, Array], inputs: Mapping[str, Array]
    ) -> float:
        assert inputs["x"].shape == reference["y"].shape
        return float(np.abs(outputs["y"] - reference["y"]).max())

    shift = {"b": np.full(WIDTH, 0.25, np.float32)}
    judge = judge_of([node("Tanh", "x")], VECTORS, judging=Judging(function=loss))
    other = net([node("Tanh", "x", "t"), node("Add", "t b")], VECTORS, shift)
    assert judge.loss(load(other)) == pytest.approx(0.25, rel=1e-5)


def test_a_function_that_gives_nan() -> None:
    judging = Judging(function=lambda reference, outputs, inputs: float("nan"))
    judge = judge_of([node("Tanh", "x")], VECTORS, judging=judging)
    with pytest.raises(DataError, match="gave NaN"):
        judge.loss(load(net([node("Tanh", "x")], VECTORS)))


def test_numbers_that_are_not_finite_do_not_hide_probabilities() -> None:
    rows = np.full((4, 3), 1 / 3, np.float32)
    rows[1] = np.nan
    (found,) = readings_of("y", [rows])
    assert (found.kind, found.form) == ("kl", "probabilities")


def test_a_part_of_an_output() -> None:
    reading = Reading("y", "l2", axis=-2, part=(-2, 1, 3))
    array = np.arange(24).reshape(2, 4, 3)
    assert np.array_equal(reading.of(array), array[:, 1:3, :])


def test_further_samples_count_as_others_do() -> None:
    """But for their labels: what the outputs are is known by those of the first."""
    x = numbers(SAMPLES, WIDTH)
    weights = {"w": numbers(WIDTH, CLASSES, seed=1)}
    model, new = (
        load(net([node("MatMul", "x w")], x, {"w": values}))
        for values in (weights["w"], weights["w"] + numbers(WIDTH, CLASSES, seed=2, scale=0.1))
    )
    every = load_dataset({"x": x, "labels": np.arange(SAMPLES) % CLASSES}, input_specs(model))
    one, other = (every.subset(range(i, SAMPLES, 2)) for i in (0, 1))
    plain = load_dataset({"x": x}, input_specs(model)).subset(range(1, SAMPLES, 2))
    whole = Judge(model, every, fm.ONE_THREAD, 5)
    for more in (other, plain):
        both = Judge(model, one, fm.ONE_THREAD, 5, more=more)
        assert both.samples == SAMPLES
        assert [r.kind for r in both.readings] == ["kl"]
        assert both.loss_and_changed(new) == pytest.approx(whole.loss_and_changed(new), rel=1e-6)
    assert Judge(model, one, fm.ONE_THREAD, 5).loss(new) != pytest.approx(whole.loss(new))
