"""Mutated models and calibration data: read, or refused with a reason; nothing else.

Every run tries a sample of each that Hypothesis draws; ``pytest -m full`` 10,000 of each.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, numpy_helper
from PIL import Image

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.errors import DataError, ModelError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
from onnx_lowrank.samples.dataset import ImageOptions, InputSpec, load_dataset
from tests.conftest import Count
from tests.robustness.victims import floats, mutated_bytes, mutated_fields, victim
from tests.support import quick

X = (InputSpec("x", np.dtype(np.float32), (None, 3, 6, 6)),)
SAMPLES = floats(0, 7, 3, 6, 6)
#: of each kind behind the marker full, and models of one test
MANY, PIECE = 10_000, 1000


def read_model(payload: bytes, folder: Path) -> str:
    """Load, inspect and write the model; the verdict."""
    path = folder / "m.onnx"
    path.write_bytes(payload)
    try:
        inspect(path)
        model = load(path)
        graph = Graph(model)
        find_layers(graph)
        save(graph.to_model(), folder / "again.onnx", source=model)
        load(folder / "again.onnx")
    except ModelError:
        return "refused"
    return "read"


def mutated_model(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    return (mutated_bytes if seed % 2 else mutated_fields)(victim(), random)


@lru_cache
def npz() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=SAMPLES, labels=np.arange(7))
    return file.getvalue()


@lru_cache
def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, SAMPLES)
    return file.getvalue()


@lru_cache
def tensor() -> bytes:
    payload: bytes = numpy_helper.from_array(SAMPLES[:1], "x").SerializeToString()
    return payload


@lru_cache
def picture(form: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (6, 6, 3), np.uint8)
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


SOURCES: dict[str, Callable[[], bytes]] = {
    "a.npz": npz,
    "a.npy": npy,
    "input_0.pb": tensor,
    "a.png": lambda: picture("PNG"),
    "a.jpg": lambda: picture("JPEG"),
    "a.bmp": lambda: picture("BMP"),
    "a.webp": lambda: picture("WEBP"),
    "a.ppm": lambda: picture("PPM"),
}


def mutated_data(name: str, seed: int) -> bytes:
    """Half of the changes of .npy and .npz fall on the first or last bytes, where the headers are.

    Half of those of a TensorProto are changes of its fields.
    """
    random, whole = np.random.default_rng(seed), SOURCES[name]()
    if name.endswith(".pb") and seed % 2:
        model = ModelProto()
        model.graph.initializer.append(TensorProto.FromString(whole))
        found = ModelProto.FromString(mutated_fields(model.SerializeToString(), random))
        return b"".join(t.SerializeToString() for t in found.graph.initializer)
    if name.startswith("a.np") and seed % 2:
        edge = 150
        if name == "a.npy" or seed % 4 == 1:
            return mutated_bytes(whole[:edge], random) + whole[edge:]
        return whole[:-edge] + mutated_bytes(whole[-edge:], random)
    return mutated_bytes(whole, random)


def read_data(name: str, payload: bytes, folder: Path) -> str:
    """Open the file and look at every feed; the verdict."""
    path = folder / name
    path.write_bytes(payload)
    try:
        dataset = load_dataset(
            path if name.startswith("a.np") else folder, X, images=ImageOptions(crop=6)
        )
        for i in range(len(dataset)):
            assert dataset.feed(i)["x"].shape[1:] == (3, 6, 6)
    except DataError:
        return "refused"
    return "read"


def test_the_victims_are_sound(tmp_path: Path) -> None:
    assert read_model(victim(), tmp_path) == "read"
    for name, make in SOURCES.items():
        (tmp_path / name).mkdir()
        assert read_data(name, make(), tmp_path / name) == "read", name


@pytest.mark.full
@given(seed=st.integers(0, 2**32))
@quick(300)
def test_mutated_models(seed: int, tmp_path_factory: pytest.TempPathFactory, count: Count) -> None:
    count("mutated models", read_model(mutated_model(seed), tmp_path_factory.mktemp("m")))


@pytest.mark.full
@given(name=st.sampled_from(list(SOURCES)), seed=st.integers(0, 2**32))
@quick(600)
def test_mutated_data(
    name: str, seed: int, tmp_path_factory: pytest.TempPathFactory, count: Count
) -> None:
    folder = tmp_path_factory.mktemp("d")
    count("mutated data", read_data(name, mutated_data(name, seed), folder))


@pytest.mark.parametrize(
    "start",
    [pytest.param(start, marks=getattr(pytest.mark, "full" if start < PIECE else "slow"))
     for start in range(0, MANY, PIECE)],
)  # fmt: skip
def test_many_mutated_models(start: int, tmp_path: Path, count: Count) -> None:
    for seed in range(start, start + PIECE):
        (tmp_path / "last").write_text(str(seed))  # for the day it ends the interpreter
        count("mutated models", read_model(mutated_model(seed), tmp_path))


@pytest.mark.full
@pytest.mark.parametrize("name", SOURCES)
def test_many_mutated_data(name: str, tmp_path: Path, count: Count) -> None:
    for seed in range(MANY // len(SOURCES)):
        payload = mutated_data(name, seed)
        count("mutated data", read_data(name, payload, tmp_path))
