"""Bigger models as users run them, with their inputs, which no repository can ship.

Models and what was made for them are looked for in the folder that the environment variable
``REAL_MODELS`` names, else in ``onnx-lowrank-real`` of the user's cache; smaller data in
``../shared/real``. Models whose file is absent are left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.nets import SHARED, Array, Net, Samples
from benchmarks.real_data import photographs

__all__ = ["BIGGER", "FOLDER", "characters", "scenes"]

FOLDER = Path(
    os.environ.get("REAL_MODELS") or Path.home() / ".cache" / "onnx-lowrank-real"
).expanduser()

_DATA = SHARED / "real"


def characters() -> list[str]:
    """The character of each class of the line recogniser; the first class stands for none."""
    return (_DATA / "ppocrv5_keys.txt").read_text(encoding="utf-8").split("\n")


def scenes(count: int = 600) -> Array:
    """More photographs to test the detector, (count, 3, 320, 320): it finds little on each."""
    return photographs("test", count, (320, 320)).transpose(0, 3, 1, 2) / 255


def _archive(path: Path) -> Samples:
    """Calibration and test part of an archive, as they are."""
    with np.load(path, allow_pickle=False) as z:
        return {name: z[name] for name in z.files}


def _lines() -> Samples:
    """Pictures of lines of text; the labels of the test part are the texts."""
    lines = _archive(_DATA / "ppocrv5_rec.npz")
    del lines["labels"]  # calibration does without
    return lines


def _sentences() -> Samples:
    """Sentences; of the test part row i and row i + n are a pair, whose likeness is label i."""
    with np.load(_DATA / "sts_benchmark.npz", allow_pickle=False) as z:

        def inputs(*parts: str) -> dict[str, Array]:
            ids, mask = (
                np.concatenate([z[f"{part}{name}"] for part in parts]).astype(np.int64)
                for name in ("input_ids", "attention_mask")
            )
            return {"input_ids": ids, "attention_mask": mask, "token_type_ids": 0 * ids}

        tested = {f"test.{k}": v for k, v in inputs("test_a.", "test_b.").items()}
        return {**inputs(""), **tested, "test.labels": z["score"]}


def _net(name: str, read: Callable[[], Samples] | None = None) -> dict[str, Net]:
    made = partial(_archive, FOLDER / f"{name}.npz")
    return {name: Net(FOLDER / f"{name}.onnx", read or made, None)}


#: by the name of the file
BIGGER: dict[str, Net] = {
    **_net("ppocrv5_rec", _lines),
    **_net("all_minilm_l6_v2", _sentences),
    **_net("yolov8n_320"),
    **_net("vit_s_focus"),
    **_net("open_nsfw"),
}
