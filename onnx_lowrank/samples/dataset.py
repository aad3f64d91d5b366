"""Datasets: the feeds of a model, whatever source they come from.

sources.py       opens files, folders, arrays, iterables and functions as arrays, mostly mapped
rows_or_runs.py  reads the arrays as runs of the model, or as rows that are samples
row_trial.py     runs the model to find out which of the two is right
feeds.py         makes feeds of the arrays, and checks them
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_lowrank.errors import DataError, ModelError, OptionError
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.option_values import check_count
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.archives import npz_keys
from onnx_lowrank.samples.feeds import Column, InputSpec
from onnx_lowrank.samples.images import ImageOptions, Picture
from onnx_lowrank.samples.padding import Counted, Mask, flat, shortened
from onnx_lowrank.samples.row_trial import RowTrial
from onnx_lowrank.samples.rows_or_runs import Reading
from onnx_lowrank.samples.sources import HELD_OUT, LABELS, Loader, check_names, describe, pick

__all__ = [
    "HELD_OUT",
    "Dataset",
    "ImageOptions",
    "InputSpec",
    "has_part",
    "input_specs",
    "load_dataset",
    "split",
]

Array = npt.NDArray[Any]

#: feeds whose lengths are compared, at the most
LOOKED_AT = 64


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """List the graph inputs that a caller must feed (initializers are left out), in order.

    Raises:
        ModelError: an input is not a tensor, or has no element type.
    """
    graph = model.proto.graph
    weights = {t.name for t in graph.initializer}
    weights |= {t.values.name for t in graph.sparse_initializer}
    return tuple(_input_spec(value) for value in graph.input if value.name not in weights)


class Dataset:
    """Random access to the feeds of a model; made by :func:`load_dataset`.

    Attributes:
        labels: a label for each feed, of any type, ``(len, ...)``; ``(len, B, ...)`` where the
            model's batch is fixed at B > 1; None if there are no labels.
        notes: sentences that say how the source was read and which samples were left out.
        batchable: whether feeds may be concatenated along axis 0 into one valid feed.
        mask: the input that marks padding; None where all positions count.
    """

    def __init__(
        self,
        reading: Reading,
        labels: Array | None = None,
        indices: npt.NDArray[np.int64] | None = None,
        mask: Mask | None = None,
        cut: bool = False,
    ) -> None:
        self.labels = labels
        self.mask = mask
        self._cut = cut
        self.notes = reading.notes
        self.batchable = reading.merge
        self._reading = reading
        self._columns: Sequence[Column] = reading.columns
        self._indices = np.arange(len(self._columns[0])) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def sample_labels(self) -> Array | None:
        """Labels, one for each sample, ``(samples, ...)``; None if there are none."""
        if self.labels is None or self._reading.rows == 1:
            return self.labels
        return self.labels.reshape(-1, *self.labels.shape[2:])

    def samples_in(self, feed: Feed) -> int:
        """Number of samples in a feed from :meth:`feed` or :meth:`batches`.

        A run whose rows are not separate samples counts as one, however long it is.
        """
        return len(feed[self._columns[0].spec.name]) if self.batchable else self._reading.rows

    def feed(self, i: int) -> dict[str, Array]:
        """Feed ``i``: one sample, one run, or the model's fixed batch; arrays may be read-only."""
        k = int(self._indices[i])
        return {column.spec.name: column.feed(k) for column in self._columns}

    @cached_property
    def typical(self) -> int:
        """Number of a usual feed: the one of median size where runs have different lengths."""
        if self.batchable:
            return 0
        looked_at = np.unique(np.linspace(0, len(self) - 1, LOOKED_AT).astype(int))
        sizes = [sum(np.size(v) for v in self.feed(int(i)).values()) for i in looked_at]
        if len(set(sizes)) == 1:
            return 0
        return int(looked_at[np.argsort(sizes, kind="stable")[len(sizes) // 2]])

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield the feeds in order; batchable ones are merged, up to ``size`` at a time.

        Raises:
            OptionError: ``size`` is below 1.
        """
        if size < 1:
            raise OptionError(f"the batch size must be 1 or more, not {size}")
        size = self.merged(size)
        for start in range(0, len(self), size):
            feeds = [self.feed(i) for i in range(start, min(start + size, len(self)))]
            whole = feeds[0]
            if len(feeds) > 1:
                whole = {name: np.concatenate([feed[name] for feed in feeds]) for name in whole}
            counted = self.counted(whole) if self._cut else None
            yield whole if counted is None else shortened(whole, counted)

    def merged(self, size: int) -> int:
        """How many feeds are merged into one where ``size`` are asked for."""
        return size if self.batchable else 1

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> Dataset:
        """The feeds at ``indices``, in that order, with their labels."""
        chosen = np.asarray(indices, dtype=np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Dataset(self._reading, labels, self._indices[chosen], self.mask, self._cut)

    def with_mask(self, mask: Mask) -> Dataset:
        """The same feeds, with positions that are padding."""
        return Dataset(self._reading, self.labels, self._indices, mask)

    def by_length(self) -> Dataset:
        """The feeds in the order of their lengths; batches end where their longest sample does.

        Between samples of one length nothing is computed that does not count.
        """
        counted = [self.counted(self.feed(i)) for i in range(len(self))]
        lengths = [
            np.inf if c is None else np.flatnonzero(c.any(0)).max(initial=0) for c in counted
        ]
        ordered = self.subset(np.argsort(lengths, kind="stable"))
        ordered._cut = True
        return ordered

    @property
    def may_be_cut(self) -> bool:
        """Whether all inputs with the positions of the mask have them along a dynamic axis 1."""
        if self.mask is None or not self.batchable:
            return False
        feed = self.feed(0)
        mask = flat(feed[self.mask.name])
        if mask is None:
            return False
        positions = mask.shape[1]
        for column in self._columns:
            shape, declared = feed[column.spec.name].shape, column.spec.shape
            if positions in shape[2:] or declared is None:
                return False
            if shape[1:2] == (positions,) and declared[1] is not None:
                return False
        return bool(positions > 1)

    def masks(self, size: int) -> Iterator[Counted | None]:
        """What :meth:`counted` gives for each feed of :meth:`batches`."""
        if self.mask is not None:
            yield from map(self.counted, self.batches(size))
        else:
            yield from itertools.repeat(None, math.ceil(len(self) / self.merged(size)))

    def counted(self, feed: Feed) -> Counted | None:
        """Positions ``(samples, positions)`` of a feed that are no padding; None where all are."""
        return None if self.mask is None else self.mask.counted(feed)

    def arrays(self) -> dict[str, Array]:
        """The feeds as an array for each input, with ``labels`` where there are any.

        They are read as the same feeds again. An input that is the same for all samples stays as
        it is; others have the samples along axis 0.

        Raises:
            DataError: runs of the model have different shapes, which no array can hold.
        """
        found: dict[str, Array] = {}
        for column in self._columns:
            name = column.spec.name
            feeds = [column.feed(int(k)) for k in self._indices[: 1 if column.shared else None]]
            shapes = {feed.shape for feed in feeds}
            if len(shapes) > 1:
                raise DataError(
                    f"input {name!r} has the shapes {', '.join(map(str, sorted(shapes)[:3]))}, "
                    "which no array can hold; leave the selection to compress --select"
                )
            if column.shared:
                found[name] = feeds[0]
            else:
                found[name] = np.stack(feeds) if column.stacked else np.concatenate(feeds)
            if found[name].dtype.kind == "O":
                found[name] = found[name].astype(np.str_)
        labels = self.sample_labels
        return found if labels is None else {**found, LABELS: labels}

    def digest(self) -> str:
        """SHA-256 of names, types, shapes, values, labels and mask in order, hexadecimal."""
        digest = hashlib.sha256()
        if self.mask is not None:
            digest.update(f"padding {self.mask}\n".encode())
        for i in range(len(self)):
            for name, values in self.feed(i).items():
                digest.update(f"{name} {values.dtype.name} {values.shape}\n".encode())
                # object arrays hold strings, and their bytes are addresses
                plain = values.astype(np.str_) if values.dtype.kind == "O" else values
                digest.update(plain.tobytes())
        if self.labels is not None:
            digest.update(self.labels.tobytes())
        return digest.hexdigest()

    def _check_values(self, where: str) -> None:
        for k in self._indices:
            for column in self._columns:
                # decoded pixels are always finite, and decoding all images takes long
                if isinstance(column.parts[0], Picture):
                    continue
                if problem := column.problem(int(k)):
                    name = column.spec.name
                    raise DataError(f"{where}: input {name!r}, sample {k}: {problem}")


def load_dataset(
    source: Any,
    specs: Sequence[InputSpec],
    *,
    samples: int | None = None,
    seed: int = 0,
    images: ImageOptions | None = None,
    part: str | None = None,
    trial: RowTrial | None = None,
) -> Dataset:
    """Open ``source`` as feeds of a model with the inputs ``specs``, and check them.

    Args:
        source: a path (.npz, .npy, a folder of those, of ``test_data_set_*`` or of images), a
            string ``file.py:function``, an array, a dict of arrays, an iterable of feeds, a
            function without arguments that returns one of these, a calibration data reader of
            ONNX Runtime, or a Dataset.
        specs: inputs of the model, from :func:`input_specs`.
        samples: largest number of feeds to take; they are drawn at random without replacement and
            stay in their order.
        seed: random seed of that draw.
        images: how to prepare the images of a folder; needed for inputs of floating point.
        part: part of an archive or dict to read: the keys that begin with ``<part>.``.
        trial: finds out whether rows along a dynamic axis 0 are samples; without it they are
            taken to be samples.

    Raises:
        DataError: the source cannot be read, or does not fit the inputs.
        OptionError: ``samples`` is below 1, or ``seed`` below 0.
    """
    if samples is not None:
        check_count("samples", samples)
    check_count("seed", seed, least=0)
    if not specs:
        raise DataError("the model has no inputs to feed; leave the data out")
    if isinstance(source, Dataset):
        if part is not None:
            raise DataError(f"a Dataset has no part {part!r}; give the archive or dict itself")
        check_names("the Dataset", specs, [column.spec.name for column in source._columns])
        return source.subset(pick(len(source), samples, seed))
    dataset = Dataset(*Loader(tuple(specs), samples, seed, images, part, trial).load(source))
    dataset = dataset.subset(pick(len(dataset), samples, seed))
    dataset._check_values(describe(source))
    return dataset


def has_part(source: Any, part: str = HELD_OUT) -> bool:
    """Whether ``source``, an .npz archive or a dict, has keys that begin with ``<part>.``."""
    if isinstance(source, Mapping):
        keys = tuple(source)
    elif isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".npz":
        keys = npz_keys(Path(source))
    else:
        return False
    return any(key.startswith(f"{part}.") for key in keys)


def split(dataset: Dataset, held_out: float, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split ``dataset`` into two at random.

    Args:
        dataset: two feeds or more.
        held_out: number of feeds to hold out (int), or fraction of them (float).
        seed: random seed.

    Returns:
        The other feeds, and the feeds held out.

    Raises:
        OptionError: ``held_out`` is neither a count nor a fraction.
        DataError: nothing would be left to calibrate with.
    """
    total = len(dataset)
    if isinstance(held_out, float) and 0 < held_out < 1:
        count = max(1, round(held_out * total))
    elif isinstance(held_out, int) and held_out >= 1:
        count = held_out
    else:
        raise OptionError(f"held_out must be a count, or a fraction in (0, 1), not {held_out}")
    if count >= total:
        raise DataError(f"cannot hold out {count} of {total} samples; give more samples")
    order = np.random.default_rng(seed).permutation(total)
    return dataset.subset(np.sort(order[count:])), dataset.subset(np.sort(order[:count]))


def _input_spec(value: onnx.ValueInfoProto) -> InputSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        what = f"of the type {kind.removesuffix('_type')}" if kind else "untyped"
        raise ModelError(
            f"input {value.name!r} is {what}, and only tensors can be fed; export the model with "
            "tensors as inputs"
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.UNDEFINED:
        raise ModelError(f"input {value.name!r} has no element type; export the model again")
    shape = None
    if tensor.HasField("shape"):
        # exporters write a dynamic dimension as a name, as nothing, as 0 or as -1
        shape = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
    return InputSpec(value.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), shape)
