"""Features of samples: a row of numbers for each, so that samples can be compared.

By a model, the features are what its last layers read, averaged over all positions. Without one
they are the inputs themselves: numbers as they are, whole numbers of 16 bits and more (tokens) by
how often each occurs. What has too many columns is folded: every column is added to one of a few,
by a hash, with a sign. Products of rows stay what they were, on average over the seeds (Charikar,
Chen, Farach-Colton, "Finding Frequent Items in Data Streams", 2002; Weinberger et al., "Feature
Hashing for Large Scale Multitask Learning", 2009), and a sample is in memory only while it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers.finder import find_layers
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.padding import without_padding

__all__ = ["WIDTH", "Features", "features_of_inputs", "features_of_model"]

Array = npt.NDArray[np.float64]

#: columns of all features together; a tensor has its part of them, but these at the least
WIDTH, LEAST_WIDTH = 128, 8
#: layers whose channels are on axis 1; others have them on the last axis
_CHANNELS_FIRST = ("Conv", "ConvTranspose")
#: steps of SplitMix64, a hash of 64 bits
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


@dataclass(frozen=True)
class Features:
    """Features of samples.

    Attributes:
        values: a row for each feed, ``(feeds, columns)``; each tensor's block is scaled so that
            its rows have a mean square of 1.
        source: words that say what they are.
    """

    values: Array
    source: str


def features_of_inputs(data: Dataset, seed: int = 0, progress: Progress | None = None) -> Features:
    """Features of the inputs themselves.

    Args:
        data: the samples.
        seed: random seed of the folding.
        progress: told of every sample.

    Raises:
        DataError: an input holds texts, or has another size in some samples.
    """
    first = data.feed(0)
    for name, value in first.items():
        if value.dtype.kind in "OUS":
            raise DataError(
                f"input {name!r} holds texts, which cannot be compared as numbers; give a model, "
                "whose own features can"
            )
    folded = [
        _Folded(len(first), seed + i, _counted(value.dtype))
        for i, value in enumerate(first.values())
    ]
    return Features(_collected(data, folded, lambda feed: feed, progress), "the inputs")


def features_of_model(
    model: Model, data: Dataset, runtime: Runtime, seed: int = 0, progress: Progress | None = None
) -> Features:
    """Features that a model makes itself: what its last layers read, averaged over positions.

    Positions that are padding do not count.

    Args:
        model: the model; one without layers gives its outputs.
        data: samples of its inputs; each is run alone, since batches need not stay on axis 0.
        runtime: runs the model.
        seed: random seed of the folding.
        progress: told of every sample.

    Raises:
        ModelError, DataError: ONNX Runtime cannot run the model on a sample.
    """
    graph = Graph(model)
    axes = _read_last(graph)
    source = "what the last layers read"
    if not axes:
        axes, source = dict.fromkeys(graph.outputs, -1), "the outputs"
    part = graph.extract(graph.input_types(), axes)
    session = None if not part.proto.graph.output else runtime.session(part)

    def tensors(feed: Feed) -> Mapping[str, npt.NDArray[Any]]:
        values = {**feed, **({} if session is None else session.run(feed))}
        counted = data.counted(feed)
        if counted is not None and len(counted) == 1:
            values = {name: without_padding(values[name], counted, 0) for name in axes}
        return {name: _pooled(values[name], axis) for name, axis in axes.items()}

    folded = [_Folded(len(axes), seed + i, counted=False) for i in range(len(axes))]
    return Features(_collected(data, folded, tensors, progress), source)


def _read_last(graph: Graph) -> dict[str, int]:
    """Tensors that layers read which no other layer follows, and the axis of their channels."""
    layers, _ = find_layers(graph)
    before = {la.name: graph.ancestors([la.input]) for la in layers}
    return {
        la.input: 1 if la.value.op in _CHANNELS_FIRST else -1
        for la in layers
        if not any(la.output in before[other.name] for other in layers)
    }


def _pooled(value: npt.NDArray[Any], axis: int) -> Array:
    """Means over all axes but one, ``(channels,)``; of a value without axes it alone."""
    if value.ndim < 2:
        return np.atleast_1d(value).astype(np.float64)
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    return np.asarray(rows.mean(0, dtype=np.float64))


def _counted(dtype: np.dtype[Any]) -> bool:
    """Whether values are names rather than amounts; bytes are amounts, as of pixels."""
    return dtype.kind in "iu" and dtype.itemsize > 1


def _collected(
    data: Dataset,
    folded: Sequence[_Folded],
    tensors: Callable[[Feed], Mapping[str, npt.NDArray[Any]]],
    progress: Progress | None,
) -> Array:
    blocks = [np.empty((len(data), 0)) for _ in folded]
    with (progress or Progress()).task("features", len(data)) as done:
        for i in range(len(data)):
            for k, (name, value) in enumerate(tensors(data.feed(i)).items()):
                row = folded[k].row(name, value)
                if i == 0:
                    blocks[k] = np.empty((len(data), len(row)))
                blocks[k][i] = row
            done(1)
    scales = [np.sqrt(max(np.einsum("ij,ij->", b, b) / len(data), 1e-300)) for b in blocks]
    return np.concatenate([b / s for b, s in zip(blocks, scales, strict=True)], axis=1)


class _Folded:
    """Rows of one tensor, folded where they have more columns than its part.

    Args:
        tensors: number of tensors that share the columns.
        seed: random seed of the hash.
        counted: whether values are counted, each a column of its own.
    """

    def __init__(self, tensors: int, seed: int, counted: bool) -> None:
        self._width = max(WIDTH // tensors, LEAST_WIDTH)
        self._seed, self._counted, self._size = seed, counted, -1
        self._places: tuple[npt.NDArray[np.int64], Array] | None = None

    def row(self, name: str, value: npt.NDArray[Any]) -> Array:
        """The features of one sample, of the same length for all."""
        flat = value.reshape(-1)
        if self._counted:
            places, signs = _hashed(flat.astype(np.int64).view(np.uint64), self._seed, self._width)
            return np.bincount(places, signs, self._width).astype(np.float64)
        flat = flat.astype(np.float64)
        if self._size < 0:
            self._size = len(flat)
            if self._size > self._width:
                columns = np.arange(self._size, dtype=np.uint64)
                self._places = _hashed(columns, self._seed, self._width)
        if len(flat) != self._size:
            raise DataError(
                f"{name!r} has {len(flat):,} numbers in one sample and {self._size:,} in another; "
                "samples of different sizes can only be compared by the features of a model: give "
                "one"
            )
        if self._places is None:
            return flat
        places, signs = self._places
        return np.bincount(places, signs * flat, self._width).astype(np.float64)


def _hashed(
    columns: npt.NDArray[np.uint64], seed: int, width: int
) -> tuple[npt.NDArray[np.int64], Array]:
    """For each column the one that it is added to, and its sign (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = columns + np.uint64(seed + 1) * _GOLDEN
        for factor, shift in zip(_MIX, (30, 27), strict=True):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    places = ((z >> np.uint64(1)) % np.uint64(width)).astype(np.int64)
    return places, np.where(z & np.uint64(1), 1.0, -1.0)
