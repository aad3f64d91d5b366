"""Measures of the people who use a model, taken with ONNX Runtime alone.

None of them asks how the library itself judges outputs, and none of their samples calibrates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.answers import (
    exact,
    pair_correlation,
    part_within,
    read_lines,
    sentence_vectors,
    snr_db,
)
from benchmarks.bigger_nets import characters, scenes
from benchmarks.detections import detections, matches
from benchmarks.nets import Array, Samples

__all__ = [
    "BOXES",
    "LINES",
    "RIGHT",
    "SAME",
    "SCORES",
    "SENTENCES",
    "SNR",
    "UserMeasure",
    "batches",
    "first_output",
    "open_session",
]

#: samples of one inference, where the model takes any number
_BATCH = 16

#: by how much a score may move
_TOLERANCE = 0.02

_ON_PROCESSOR = ["CPUExecutionProvider"]


@dataclass(frozen=True)
class UserMeasure:
    """How the people who use a model say how good it is.

    Attributes:
        heading: what is measured, in the words of a table.
        figure: name of the figure that tells it of a compressed model; that of the original has
            ``_before`` behind, where there is one.
        form: how that figure is written.
        answer: what a model says of the test part, by inputs without ``test.``.
        figures: all that is known of the original's answers, the new ones, and the test part.
        besides: names of other figures that are told, with their forms.
    """

    heading: str
    figure: str
    form: str
    answer: Callable[[Path, Samples], Array]
    figures: Callable[[Array, Array, Samples], dict[str, float]]
    besides: tuple[tuple[str, str], ...] = ()


def open_session(model: Path) -> onnxruntime.InferenceSession:
    """A session on the processor without warnings, all else left to ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=_ON_PROCESSOR)


def batches(session: onnxruntime.InferenceSession, inputs: Samples) -> Iterator[Samples]:
    """Feeds of the model's inputs, as many samples in each as it takes, at the most 16."""
    specs = session.get_inputs()
    fixed = [spec.shape[0] for spec in specs if isinstance(spec.shape[0], int)]
    size = fixed[0] if fixed else _BATCH
    for start in range(0, len(inputs[specs[0].name]), size):
        yield {spec.name: inputs[spec.name][start : start + size] for spec in specs}


def _as_it_is(output: Array) -> Array:
    return output


def first_output(
    model: Path, inputs: Samples, summary: Callable[[Array], Array] = _as_it_is
) -> Array:
    """The first output for all samples, each batch of it summed up before the next one is run."""
    session = open_session(model)
    return np.concatenate(
        [summary(np.asarray(session.run(None, feed)[0])) for feed in batches(session, inputs)]
    )


def _characters_read(model: Path, tested: Samples) -> Array:
    """The likeliest class at each position of each line: all classes would fill the memory."""
    return first_output(model, tested, lambda scores: scores.argmax(axis=2))


def _vectors(model: Path, tested: Samples) -> Array:
    """The direction of each sentence; sentences of like length are run together."""
    session, mask = open_session(model), tested["attention_mask"]
    lengths = mask.sum(axis=1)  # padding stands behind the words
    order = np.argsort(lengths, kind="stable")
    vectors: list[Array] = []
    for chosen in np.split(order, range(_BATCH, len(order), _BATCH)):
        longest = lengths[chosen].max()
        feed = {s.name: tested[s.name][chosen, :longest] for s in session.get_inputs()}
        states = np.asarray(session.run(None, feed)[0])
        vectors.append(sentence_vectors(states, mask[chosen, :longest]))
    found = np.concatenate(vectors)
    found[order] = found.copy()
    return found


def _boxes(model: Path, tested: Samples) -> Array:
    return first_output(model, {"images": np.concatenate([tested["images"], scenes()])})


def _of_classes(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    before, after = (x.reshape(len(x), -1).argmax(axis=1) for x in (reference, new))
    figures = {"agreement": float(np.mean(before == after)), "snr": snr_db(reference, new)}
    if "labels" in tested:
        figures["accuracy_before"] = float(np.mean(before == tested["labels"]))
        figures["accuracy"] = float(np.mean(after == tested["labels"]))
    return figures


def _of_lines(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    known, texts = characters(), [str(text) for text in tested["labels"]]
    before, after = (exact(read_lines(x, known), texts) for x in (reference, new))
    return {"lines_before": before, "lines": after}


def _of_sentences(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    before, after = (pair_correlation(x, tested["labels"]) for x in (reference, new))
    return {"sts_before": before, "sts": after, "snr": snr_db(reference, new)}


def _of_boxes(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    before, after = ([detections(x) for x in found] for found in (reference, new))
    there = sum(len(picture.classes) for picture in before)
    found = sum(matches(*pair) for pair in zip(before, after, strict=True))
    return {
        "boxes": there,
        "boxes_matched": found / max(there, 1),
        "snr_boxes": snr_db(reference[:, :4], new[:, :4]),
        "snr_scores": snr_db(reference[:, 4:], new[:, 4:]),
    }


def _of_scores(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    close = part_within(reference[:, 1], new[:, 1], _TOLERANCE)
    return {"scores_kept": close, "snr": snr_db(reference, new)}


def _of_output(reference: Array, new: Array, tested: Samples) -> dict[str, float]:
    return {"snr": snr_db(reference, new)}


_SNR: tuple[Any, ...] = (("snr", "{:.1f} dB"),)

RIGHT = UserMeasure(
    "right first class", "accuracy", "{:.2%}", first_output, _of_classes,
    (("agreement", "{:.1%} same"), *_SNR),
)  # fmt: skip
SAME = UserMeasure("same first class", "agreement", "{:.1%}", first_output, _of_classes, _SNR)
LINES = UserMeasure("lines read exactly", "lines", "{:.1%}", _characters_read, _of_lines)
SENTENCES = UserMeasure("STS-B Spearman", "sts", "{:.2f}", _vectors, _of_sentences, _SNR)
BOXES = UserMeasure(
    "boxes matched at IoU 0.9", "boxes_matched", "{:.1%}", _boxes, _of_boxes,
    (("boxes", "of {:.0f}"), ("snr_boxes", "boxes {:.1f} dB"),
     ("snr_scores", "scores {:.1f} dB")),
)  # fmt: skip
SCORES = UserMeasure(
    f"scores within {_TOLERANCE}", "scores_kept", "{:.1%}", first_output, _of_scores, _SNR
)
SNR = UserMeasure("SNR", "snr", "{:.1f} dB", first_output, _of_output)
