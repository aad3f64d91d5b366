"""Sources of samples of every kind, opened as columns of samples.

A source is an .npz or a dict of arrays; an .npy or an array; a folder of array files, of
``input_*.pb`` or of images; an iterable of feeds or a calibration data reader, which is read once,
into a temporary file; or a function without arguments that returns one of these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from onnx_lowrank.errors import DataError
from onnx_lowrank.modelfile.array_store import ArrayStore
from onnx_lowrank.modelfile.file_kinds import other_kind
from onnx_lowrank.samples.archives import (
    array_files,
    npz_keys,
    read_npy,
    read_npz,
    tensor_feeds,
    tensor_folders,
)
from onnx_lowrank.samples.feeds import REMEDY, Column, InputSpec
from onnx_lowrank.samples.images import ImageOptions, Picture, image_files
from onnx_lowrank.samples.row_trial import RowTrial
from onnx_lowrank.samples.rows_or_runs import Items, Reading, read
from onnx_lowrank.samples.user_code import python_function, read_all, user_code, user_feeds

__all__ = ["HELD_OUT", "LABELS", "Loaded", "Loader", "check_names", "describe", "pick"]

Array = npt.NDArray[Any]
LABELS = "labels"
#: An archive may hold a held-out part under the keys ``test.<input>`` and ``test.labels``.
HELD_OUT = "test"
ACCEPTED = (
    ".npz, .npy, a folder of those, of test_data_set_*/input_*.pb or of images, or file.py:function"
)


class Loaded(NamedTuple):
    """Samples of a source, with their labels if it has any."""

    reading: Reading
    labels: Array | None


def describe(source: Any) -> str:
    """Name of ``source`` for messages."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "__name__", None)
    return f"the {type(source).__name__}" + (f" {name!r}" if name else "")


def pick(total: int, samples: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Draw ``samples`` numbers of ``range(total)`` at random, sorted; all if there are no more."""
    if samples is None or samples >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, samples, replace=False))


def check_names(where: str, specs: Sequence[InputSpec], found: Sequence[str]) -> None:
    """Refuse arrays whose names are not the names of the inputs.

    Raises:
        DataError: a name is missing or unknown.
    """
    expected = [spec.name for spec in specs]
    if sorted(found) != sorted(expected):
        raise DataError(
            f"{where}: expected arrays named {', '.join(expected)}, found "
            f"{', '.join(found) or 'none'}; name them as the inputs of the model"
        )


@dataclass(frozen=True)
class Loader:
    """Opens sources for one model; the fields are arguments of ``load_dataset``."""

    specs: tuple[InputSpec, ...]
    samples: int | None
    seed: int
    images: ImageOptions | None
    part: str | None
    trial: RowTrial | None = None

    def load(self, source: Any) -> Loaded:
        """Open ``source`` without reading its values.

        Raises:
            DataError: it cannot be read, or its names, shapes or types do not fit.
        """
        where = describe(source)
        if isinstance(source, Mapping):
            keys = self._select(where, list(source))
            return self._loaded(
                where, [(where, {n: _array(where, source[k]) for n, k in keys.items()})]
            )
        if isinstance(source, str) and (function := python_function(source)) is not None:
            with user_code(source, source.rpartition(":")[0]):
                result = function()
            return self.load(result)
        if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".npz":
            return self._archive(Path(source))
        reader = hasattr(source, "get_next") and not isinstance(source, type)
        if callable(source) and not reader:
            with user_code(where):
                result = source()
            return self.load(result)
        if self.part is not None:
            raise DataError(
                f"{where} has no part {self.part!r}: only an .npz or a dict has parts; give one "
                "of these"
            )
        if isinstance(source, str | os.PathLike):
            return self._path(Path(source))
        if hasattr(source, "__array__"):
            return self._loaded(where, [(where, {self._only(where): _array(where, source)})])
        if reader:
            return self._feeds(where, user_feeds(where, read_all(source)))
        if isinstance(source, Iterable):
            return self._feeds(where, user_feeds(where, source))
        raise DataError(f"{where} is not a source of samples; give {ACCEPTED}, arrays or feeds")

    def _path(self, path: Path) -> Loaded:
        try:
            return self._from(path)
        except OSError as error:  # names that are too long, folders that may not be read
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error}); give {ACCEPTED}"
            ) from error

    def _from(self, path: Path) -> Loaded:
        if path.is_dir():
            return self._folder(path)
        if path.suffix.lower() == ".npy":
            store = ArrayStore("the samples")
            slot = read_npy(path, store)
            return self._loaded(str(path), [(str(path), {self._only(str(path)): store.view(slot)})])
        if not path.exists():
            raise DataError(f"{path}: no such file or folder")
        kind = other_kind(path)
        known = "" if kind is None else f" ({kind.name})"
        raise DataError(f"{path}: not a source of samples{known}; give {ACCEPTED}")

    def _archive(self, path: Path) -> Loaded:
        store = ArrayStore("the samples")
        item = self._read_archive(path, store)
        return self._loaded(str(path), [(str(path), {n: store.view(s) for n, s in item.items()})])

    def _read_archive(self, path: Path, store: ArrayStore) -> dict[str, Any]:
        keys = self._select(str(path), npz_keys(path))
        slots = read_npz(path, list(keys.values()), store)
        return {name: slots[key] for name, key in keys.items()}

    def _folder(self, folder: Path) -> Loaded:
        if tensors := tensor_folders(folder):
            return self._feeds(str(folder), tensor_feeds(tensors, [s.name for s in self.specs]))
        files, pictures = array_files(folder), image_files(folder)
        if files and pictures:
            raise DataError(
                f"{folder}: holds both arrays and images; keep them in separate folders"
            )
        if pictures:
            return self._pictures(folder, pictures)
        if not files:
            raise DataError(f"{folder}: holds no samples; expected {ACCEPTED}")
        store = ArrayStore("the samples")
        slots = [
            self._read_archive(file, store)
            if file.suffix.lower() == ".npz"
            else {self._only(str(file)): read_npy(file, store)}
            for file in files
        ]
        return self._loaded(
            str(folder),
            [
                (str(file), {name: store.view(slot) for name, slot in item.items()})
                for file, item in zip(files, slots, strict=True)
            ],
        )

    def _pictures(self, folder: Path, files: Sequence[Path]) -> Loaded:
        name, spec = self._only(str(folder)), self.specs[0]
        integer = spec.dtype.kind in "iu"
        if self.images is None and not integer:
            raise DataError(
                f"{folder}: nothing was said of how training scaled and normalised its images; "
                "give --resize, --crop, --scale, --mean or --std (--scale 0.00392157 for 0..1)"
            )
        options = self.images or ImageOptions()
        if integer and (options.mean, options.std) != (ImageOptions.mean, ImageOptions.std):
            raise DataError(
                f"{folder}: input {name!r} takes whole pixels as {spec.dtype.name}; leave mean "
                "and std out"
            )
        if self.samples is not None and len(files) >= spec.batch:
            # choose before opening: reading the headers of very many images takes long
            feeds = pick(len(files) // spec.batch, self.samples, self.seed)
            files = [files[k * spec.batch + j] for k in feeds for j in range(spec.batch)]
        items = [(str(f), {name: Picture(f, options, integer=integer)}) for f in files]
        remedy = "set resize, crop, layout and channel_order as in training"
        return self._loaded(str(folder), items, stacked=False, remedy=remedy)

    def _feeds(self, where: str, feeds: Iterable[tuple[str, Any]]) -> Loaded:
        """Copy feeds to a temporary file and read each as one run of the model."""
        names = [spec.name for spec in self.specs]
        store = ArrayStore("the samples")
        slots = []
        for place, feed in feeds:
            if not isinstance(feed, Mapping):
                raise DataError(
                    f"{place}: expected a dict of arrays by input name ({', '.join(names)}), "
                    f"found {type(feed).__name__}"
                )
            check_names(place, self.specs, list(feed))
            slots.append((place, {n: store.add(_array(place, feed[n])) for n in names}))
        if not slots:
            raise DataError(f"{where}: has no samples; give at least one")
        items = [(p, {n: store.view(s) for n, s in item.items()}) for p, item in slots]
        return Loaded(read(where, self.specs, items, self.trial, feeds=True), None)

    def _loaded(
        self, where: str, items: Items, *, stacked: bool | None = None, remedy: str = REMEDY
    ) -> Loaded:
        given = _given_labels(where, self.specs, items)
        reading = read(
            where, self.specs, items, self.trial, stacked=stacked, remedy=remedy,
            labels=None if given is None else sum(map(len, given)),
        )  # fmt: skip
        return Loaded(reading, _labels(where, given, reading.columns))

    def _select(self, where: str, keys: Sequence[str]) -> dict[str, str]:
        """Keys of the part asked for, by input name, with the labels if there are any."""
        names = [spec.name for spec in self.specs]
        if self.part is not None:
            prefix = f"{self.part}."
            chosen = {k.removeprefix(prefix): k for k in keys if k.startswith(prefix)}
            if not chosen:
                raise DataError(
                    f"{where} has no part {self.part!r}; expected keys {prefix}{names[0]} ..., "
                    f"found {', '.join(keys)}"
                )
        else:
            chosen = {k: k for k in keys if k in names or not k.startswith(f"{HELD_OUT}.")}
        check_names(where, self.specs, [k for k in chosen if k in names or k != LABELS])
        return chosen

    def _only(self, where: str) -> str:
        if len(self.specs) > 1:
            raise DataError(
                f"{where}: expected an array for each of the inputs "
                f"{', '.join(spec.name for spec in self.specs)}, found one without a name; "
                "give an .npz or a dict with their names"
            )
        return self.specs[0].name


def _given_labels(where: str, specs: Sequence[InputSpec], items: Items) -> list[Array] | None:
    """Labels of each item; None if there are none."""
    given = [arrays[LABELS] for _, arrays in items if LABELS in arrays]
    if not given or any(spec.name == LABELS for spec in specs):
        return None
    if len(given) < len(items):
        raise DataError(
            f"{where}: only {len(given)} of {len(items)} files have labels; give labels in all "
            "files or in none"
        )
    if len(given) == 1 and not given[0].shape:
        raise DataError(
            f"{where}: the labels are a single value; give a label for each sample along axis 0"
        )
    return [np.atleast_1d(np.asarray(labels)) for labels in given]


def _labels(where: str, given: Sequence[Array] | None, columns: Sequence[Column]) -> Array | None:
    """Join the labels: one for each feed, or for each row of a fixed batch."""
    if given is None:
        return None
    longest = max(columns, key=lambda column: column.step)
    if len({labels.shape[1:] for labels in given}) > 1:
        raise DataError(
            f"{where}: the labels have different shapes; give labels of one shape for all samples"
        )
    values = np.concatenate(given)
    if values.dtype.kind in "iu":
        values = values.astype(np.int64)
    if len(values) == len(longest):
        return values
    if len(values) != longest.rows:
        raise DataError(
            f"{where}: expected {longest.rows} labels, found {len(values)}; give one for each "
            "sample"
        )
    values = values[: len(longest) * longest.step]
    return values.reshape(-1, longest.step, *values.shape[1:])


def _array(where: str, values: Any) -> Array:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{where}: not an array ({error}); give numeric arrays") from error
    if array.dtype.kind == "O" and all(isinstance(v, str | bytes) for v in array.reshape(-1)):
        return np.array(array.tolist(), ndmin=array.ndim).reshape(array.shape)
    if array.dtype.hasobject:
        raise DataError(f"{where}: holds Python objects; give arrays of numbers or strings")
    return array
