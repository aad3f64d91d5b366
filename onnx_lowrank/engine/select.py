"""Choose the samples that are worth calibrating on: the function and command ``select``."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.array_store import ArrayStore
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.modelfile.saving import check_output
from onnx_lowrank.options import documented, from_keywords, option
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime.options import RuntimeOptions
from onnx_lowrank.samples.archives import npz_keys, read_npz
from onnx_lowrank.samples.dataset import Dataset, input_specs, load_dataset
from onnx_lowrank.samples.features import Features, features_of_inputs, features_of_model
from onnx_lowrank.samples.feeds import InputSpec
from onnx_lowrank.samples.images import ImageOptions
from onnx_lowrank.samples.mask_trial import with_mask
from onnx_lowrank.samples.padding import PaddingOptions
from onnx_lowrank.samples.row_trial import RowTrial
from onnx_lowrank.samples.selection import SELECTIONS, check_selection, choose_samples
from onnx_lowrank.samples.sources import HELD_OUT, LABELS, describe
from onnx_lowrank.samples.split import DrawOptions

__all__ = ["ChoiceOptions", "SelectOptions", "Selection", "check_archive", "select"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ChoiceOptions(DrawOptions):
    """How samples are chosen."""

    title: ClassVar[str] = "choice"

    samples: int = option(64, "Number of samples to choose.", metavar="N")
    by: str = option(
        "l21",
        "Rule: l21 takes those that the others are made of, decorrelated the same but no two "
        "alike, random draws.",
        choices=SELECTIONS,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_selection(self.by)


@dataclass(frozen=True)
class SelectOptions:
    """Options of ``select``."""

    choice: ChoiceOptions = ChoiceOptions()
    runtime: RuntimeOptions = RuntimeOptions()
    images: ImageOptions = ImageOptions()


@dataclass(frozen=True)
class Selection:
    """Samples that were chosen.

    Attributes:
        indices: numbers of the chosen samples in the data, from 0, rising.
        total: number of samples that there are.
        by: rule that they were chosen by.
        seed: of all random draws.
        said: sentences that say how the data was read and the samples were chosen.
        samples: the chosen samples; anything that takes calibration data takes them.
    """

    indices: tuple[int, ...]
    total: int
    by: str
    seed: int
    said: tuple[str, ...]
    samples: Dataset
    _held: Mapping[str, Array]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as printed by ``--json``."""
        return {
            "by": self.by,
            "seed": self.seed,
            "total": self.total,
            "indices": list(self.indices),
            "notes": list(self.said),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the samples in one step as an .npz, with labels and held-out part where they are.

        Equal samples give equal bytes.

        Raises:
            DataError: runs have different shapes, which no array can hold.
            OptionError: the path does not end in .npz.
            ModelError: the file cannot be written.
        """
        arrays = {**self.samples.arrays(), **self._held}
        # zipfile gives entries that are opened by name the date 1980-01-01
        with atomic_write(check_archive(path)) as file, zipfile.ZipFile(file, "w") as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, np.asarray(values), allow_pickle=False)


@documented(SelectOptions)
def select(
    data: Any,
    *,
    model: str | os.PathLike[str] | onnx.ModelProto | Model | None = None,
    progress: Progress | None = None,
    **keywords: Any,
) -> Selection:
    """Choose the samples that are worth calibrating on.

    Args:
        data: anything that ``calib`` of :func:`onnx_lowrank.compress` may be; without a model an
            .npz or a dict. A held-out part stays as it is.
        model: path or ModelProto, whose features samples are compared by; None compares inputs.
        progress: told of every sample.
        **keywords: options by name:
            {options}

    Raises:
        OptionError, ModelError, DataError: as the inputs deserve.
    """
    options = from_keywords(SelectOptions, keywords)
    choice, runtime = options.choice, options.runtime.runtime()
    source = None if model is None else load(model)
    held: Mapping[str, Array] = {}
    if isinstance(data, str | os.PathLike) and Path(data).suffix.lower() == ".npz":
        held = _arrays(Path(data), prefix=f"{HELD_OUT}.")
        given = data if source is not None else _arrays(Path(data))
    else:
        given = data
        if isinstance(data, Mapping):
            held = {k: v for k, v in data.items() if k.startswith(f"{HELD_OUT}.")}
    if source is None:
        dataset = load_dataset(given, _specs(given, describe(data)))
    else:
        specs, trial = input_specs(source), RowTrial(source, runtime)
        dataset = load_dataset(given, specs, images=options.images.given, trial=trial)
        dataset, _ = with_mask(dataset, source, runtime, PaddingOptions())

    def features() -> Features:
        if source is None:
            return features_of_inputs(dataset, choice.seed, progress)
        return features_of_model(source, dataset, runtime, choice.seed, progress)

    indices, said = choose_samples(dataset, choice.samples, choice.by, choice.seed, features)
    return Selection(
        indices=tuple(int(i) for i in indices),
        total=len(dataset),
        by=choice.by,
        seed=choice.seed,
        said=(*dataset.notes, said),
        samples=dataset.subset(indices),
        _held=held,
    )


def check_archive(path: str | os.PathLike[str]) -> Path:
    """Refuse a path that is not that of an .npz, or that cannot be written to.

    Raises:
        OptionError: as said.
    """
    if Path(path).suffix.lower() != ".npz":
        raise OptionError(f"{os.fspath(path)}: chosen samples are written as .npz; name it so")
    return check_output(path)


def _arrays(path: Path, prefix: str = "") -> dict[str, Array]:
    """The arrays of an archive, mapped: those of its held-out part, or all others."""
    keys = [k for k in npz_keys(path) if k.startswith(f"{HELD_OUT}.") == bool(prefix)]
    store = ArrayStore("the samples")
    return {key: store.view(slot) for key, slot in read_npz(path, keys, store).items()}


def _specs(given: Any, where: str) -> list[InputSpec]:
    """Inputs as an archive names them, with samples along axis 0."""
    if not isinstance(given, Mapping):
        raise OptionError(
            f"{where} does not name its arrays, so nothing says what they are inputs of; give the "
            "model (--model), or an .npz"
        )
    inputs = {
        name: np.asarray(values)
        for name, values in given.items()
        if name != LABELS and not name.startswith(f"{HELD_OUT}.")
    }
    return [
        InputSpec(
            name,
            np.dtype(object) if v.dtype.kind in "US" else v.dtype,
            (None, *v.shape[1:]) if v.shape else (),
        )
        for name, v in inputs.items()
    ]
