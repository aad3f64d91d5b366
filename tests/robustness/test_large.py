"""Models with weights in files, and above 2 GB: layout kept, ties kept, little memory taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.validate import validate
from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile import loading
from onnx_lowrank.modelfile.external_data import Place, layout, place, refer
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import check_output, save
from onnx_lowrank.modelfile.scratch import Scratch
from onnx_lowrank.runtime.runtime import Runtime
from tests import fixtures_models as fm
from tests.robustness.victims import floats

X = floats(0, 200, 32)


def low(seed: int, rows: int, columns: int) -> Any:
    """Of rank 8: its factors are just large enough for a file of weights."""
    return floats(seed, rows, 8) @ floats(seed + 1, 8, columns) / np.float32(3 * rows**0.5)


def net() -> ModelProto:
    """Six products; the last two have the same numbers, under two names."""
    names = [f"w{i}" for i in range(6)]
    nodes = []
    for i, name in enumerate(names):
        source, target = f"h{i}" if i else "x", f"h{i + 1}" if i < 5 else "y"
        nodes += [
            helper.make_node("MatMul", [source, name], [f"p{i}"], name=f"m{i}"),
            helper.make_node("Tanh", [f"p{i}"], [target], name=f"t{i}"),
        ]
    weights = {name: low(i, 32, 32) for i, name in enumerate(names)}
    weights["w5"] = weights["w4"].copy()
    return fm.build(nodes, {"x": ["N", 32]}, {"y": ["N", 32]}, weights)


def placed(folder: Path, where: Callable[[str], str], proto: ModelProto | None = None) -> Path:
    """:func:`net` with each weight in the file that ``where`` names, w5 tied to w4."""
    proto, folder = proto or net(), folder / "in"
    folder.mkdir()
    tied: dict[str, Place] = {}
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).tobytes()
        name = "w4" if tensor.name == "w5" else tensor.name
        file = folder / where(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        if name not in tied:
            offset = file.stat().st_size if file.exists() else 0
            tied[name] = Place(where(name), offset, len(values))
            with file.open("ab") as data:
                data.write(values)
        refer(tensor, tied[name])
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


LAYOUTS: dict[str, tuple[Callable[[str], str], set[str]]] = {
    "one file": (lambda _: "weights.bin", {"small.onnx.data"}),
    "one file, called after the model": (lambda _: "net.onnx_data", {"small.onnx_data"}),
    "two files": (
        lambda w: f"part{int(w[1]) // 3}.bin",
        {"small.onnx.part0.bin", "small.onnx.part1.bin"},
    ),
    "numbered files": (
        lambda w: "net.onnx.data" + ".1" * (int(w[1]) > 2),
        {"small.onnx.data", "small.onnx.data.1"},
    ),
    "a file for each weight": (
        lambda w: f"weights/{w}",
        {f"small.onnx.weights_w{i}" for i in range(5)},
    ),
}


@pytest.fixture(params=[False, True], ids=["whole", "in pieces"])
def in_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With True, models count as too large for one protobuf from 12 kB on."""
    if request.param:
        fm.shrink_limits(monkeypatch, 12_000, 8_000)
    return bool(request.param)


@pytest.mark.parametrize("case", LAYOUTS)
@pytest.mark.parametrize("calib", [None, X], ids=["no data", "data"])
def test_the_layout_is_kept(case: str, calib: Any, in_pieces: bool, tmp_path: Path) -> None:
    where, files = LAYOUTS[case]
    path = placed(tmp_path, where)
    source = load(path)
    assert source.large == in_pieces
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    assert inspect(path).cost.parameters == 6 * 32 * 32
    result = fm.quick_compress(
        path, calib=None if calib is None else {"x": calib}, ranks="fixed=8",
        include=["m0", "m1"], force=True,
    )  # fmt: skip
    out = path.parent / "small.onnx"
    written = result.save(out)
    made = {p for p in path.parent.rglob("*") if p.is_file()} - before.keys() - {out}
    assert {p.name for p in made} == files
    assert {p: p.read_bytes() for p in before} == before
    assert written == sum(p.stat().st_size for p in (out, *made)) == load(out).bytes
    assert abs(result.report.after.bytes - written) < 500  # names of files
    wanted = fm.run(path, {"x": X})["y"]
    assert fm.relative(fm.run(out, {"x": X})["y"], wanted) < 1e-5
    found = validate(path, out, {"x": X}, threads=1)
    assert found.outputs[0].relative_error < 1e-5
    places = {t.name: place(t) for t in load(out).outside}
    assert places["w4"] == places["w5"] != places["w3"]


@pytest.mark.full
def test_pieces_and_whole_give_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(tmp_path, lambda _: "weights.bin")
    files = []
    for name, limit in (("a.onnx", 1 << 30), ("b.onnx", 10_000)):
        fm.shrink_limits(monkeypatch, limit, 5_000)
        result = fm.quick_compress(path, calib={"x": X}, target="params=0.5", force=True)
        result.save(tmp_path / name)
        files.append((tmp_path / f"{name}.data").read_bytes())
    assert files[0] == files[1]


def test_a_model_above_the_limit_without_files_is_written_with_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(net(), tmp_path / "in.onnx")
    fm.shrink_limits(monkeypatch, 12_000, 8_000)
    path, options = tmp_path / "in.onnx", {"ranks": "fixed=8", "force": True}
    large = fm.quick_compress(path, include=["m0"], **options)
    large.save(tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").stat().st_size > 12_000
    small = fm.quick_compress(path, **options)
    fm.shrink_limits(monkeypatch, 20_000, 8_000)
    small.save(tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx.data").exists()
    wanted = fm.run(path, {"x": X})["y"]
    for name in ("large.onnx", "small.onnx"):
        assert fm.relative(fm.run(tmp_path / name, {"x": X})["y"], wanted) < 1e-5


def test_parts_refer_to_the_files(tmp_path: Path, in_pieces: bool) -> None:
    source = load(placed(tmp_path, lambda _: "weights.bin"))
    graph = Graph(source)
    own = graph.add_constant("own", low(9, 32, 32))
    (node,) = (n for n in graph.nodes if n.name == "m0")
    graph.change(node, {1: own})
    part = graph.extract(graph.input_types(), ["h2"])
    held = {t.name: len(t.raw_data) for t in part.proto.graph.initializer}
    assert held == {"own": 0 if in_pieces else 4096, "w1": 0}
    made = Runtime(threads=1).session(part).run({"x": X})["h2"]
    wanted = np.tanh(np.tanh(X @ low(9, 32, 32)) @ low(1, 32, 32))
    assert fm.relative(made, wanted) < 1e-5


def test_values_are_mapped_not_read(tmp_path: Path) -> None:
    source = load(placed(tmp_path, lambda _: "weights.bin"))
    values = source.read(source.proto.graph.initializer[3])
    assert type(values) is np.ndarray
    assert not values.flags.writeable
    np.testing.assert_array_equal(values, low(3, 32, 32))


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "bool", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 7)])
def test_scratch_keeps_types_and_shapes(dtype: str, shape: tuple[int, ...]) -> None:
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(
        {"float64": "DOUBLE"}.get(dtype, dtype.upper())
    ))  # fmt: skip
    values = np.asarray(floats(1, *shape) if shape else np.float32(2.5)).astype(kind)
    scratch = Scratch()
    tensors = [scratch.add(str(i), values) for i in range(2)]
    assert place(tensors[1]).offset >= place(tensors[0]).offset + values.nbytes
    for tensor in tensors:
        assert scratch.holds(tensor)
        found = scratch.read(tensor)
        assert (found.shape, found.dtype) == (values.shape, kind)
        assert found.tobytes() == values.tobytes() == b"".join(scratch.chunks(tensor))


def test_names_of_files() -> None:
    assert layout([], "a.onnx", "b.onnx") == {}
    assert layout(["w", "w"], "", "b.onnx") == {"w": "b.onnx.data"}
    found = layout(["x/y", "x_y", "a.onnx", "./z"], "a.onnx", "b.onnx")
    assert len(set(found.values())) == len(found) == 4
    assert all(name.startswith("b.onnx.") and "/" not in name for name in found.values())
    many = layout([f"w{i}" for i in range(1000)], "a.onnx", "b.onnx")
    assert set(many.values()) == {"b.onnx.data"}


def test_no_file_of_the_input_is_written_to(tmp_path: Path) -> None:
    """Files of the input that have the names of those of the output."""
    names = {"w0": "small.onnx.w", "w1": "w"}
    path = placed(tmp_path, lambda w: names.get(w, "w"))
    with pytest.raises(OptionError, match="holds the input's weights; name another output"):
        check_output(path.parent / "small.onnx", load(path))


def test_a_file_that_was_cut_is_an_error_not_a_short_copy(tmp_path: Path) -> None:
    path = placed(tmp_path, lambda _: "weights.bin")
    source = load(path)
    os.truncate(path.parent / "weights.bin", 5000)
    with pytest.raises(ModelError, match=r"'weights\.bin' is too short"):
        save(source, tmp_path / "out.onnx", source=source)
    assert not list(tmp_path.glob("out*"))


def test_a_proto_above_two_gigabytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "LARGEST_FILE", 20_000)
    with pytest.raises(ModelError, match="save_as_external_data=True"):
        load(net())


# the real size

WIDTH, WIDE = 256, 131072
SCRIPT = """
    import json, sys
    import numpy as np
    from onnx_lowrank import compress, inspect, validate
    task, source, target = sys.argv[1:]
    x = np.random.default_rng(5).standard_normal((16, 256)).astype(np.float32)
    found = {}
    if task == "inspect":
        found["params"] = inspect(source).cost.parameters
    elif task == "validate":
        found["error"] = validate(source, target, {"x": x}, threads=2).outputs[0].relative_error
    else:
        data = {"calib": {"x": x}} if task == "calibrate" else {}
        names = ["mid*"] if data else ["up0"]
        result = compress(
            source, include=names, ranks="fixed=32", force=True, threads=2, passes="svd", **data
        )
        found["bytes"] = result.save(target)
        found["latency"] = [p.reference_ms for p in result.report.latency]
    status = open("/proc/self/status").read()
    found["peak"] = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    print(json.dumps(found))
"""


def write_deep(path: Path, pairs: int) -> Path:
    """``pairs`` of products from WIDTH to WIDE and back, then one of WIDTH to WIDTH, in files."""
    sizes = {f"{k}{i}": WIDTH * WIDE for i in range(pairs) for k in ("up", "down")}
    sizes |= {f"mid{i}": WIDTH * WIDTH for i in range(2)}
    data = path.with_name("weights.bin")
    nodes, tensors, offset, source = [], [], 0, "x"
    with data.open("wb") as file:
        for number, (name, size) in enumerate(sizes.items()):
            rows = WIDE if name.startswith("down") else WIDTH
            columns = size // rows
            left = floats(number, rows, 32)
            right = floats(number + 1, 32, columns) / np.float32((32 * rows) ** 0.5)
            for start in range(0, rows, 1024):  # a few rows at a time
                (left[start : start + 1024] @ right).tofile(file)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, columns])
            refer(tensor, Place(data.name, offset, 4 * size))
            tensors.append(tensor)
            offset += 4 * size
            nodes += [
                helper.make_node("MatMul", [source, name], [f"p_{name}"], name=name),
                helper.make_node("Tanh", [f"p_{name}"], [source := f"t_{name}"]),
            ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "deep", [value("x", TensorProto.FLOAT, ["N", WIDTH])],
        [value(source, TensorProto.FLOAT, ["N", WIDTH])], tensors,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A model of 0.3 GB and one of 3.2 GB; of 2.2 GB where the disk is short."""
    folder = tmp_path_factory.mktemp("deep")
    free = shutil.disk_usage(folder).free
    if free < 8 << 30:
        pytest.skip("needs 8 GB of disk")
    pairs = 12 if free > 12 << 30 else 8
    for name in ("one", "all"):
        (folder / name).mkdir()
    try:
        yield (
            write_deep(folder / "one" / "deep.onnx", 1),
            write_deep(folder / "all" / "deep.onnx", pairs),
        )
    finally:
        shutil.rmtree(folder)


def measured(task: str, source: Path) -> dict[str, Any]:
    """What a process of its own found, and its peak memory in GB."""
    target = source.with_name("small.onnx")
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": str(fm.ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), task, str(source), str(target)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read in /proc")
def test_above_two_gigabytes(deep: tuple[Path, Path]) -> None:
    """No more memory than 1.5 times that of a model of one such layer, and 1 GB."""
    one, every = deep
    assert every.with_name("weights.bin").stat().st_size > 1 << 31
    for task in ("inspect", "compress", "validate", "calibrate", "validate"):
        small, large = measured(task, one), measured(task, every)
        print(task, "one layer", small, "all", large)
        assert large["peak"] < 1.5 * small["peak"] + 1, (task, small, large)
        if "bytes" in large:
            assert (1 << 31) < large["bytes"] < every.with_name("weights.bin").stat().st_size
            names = {p.name for p in every.parent.iterdir()}
            assert names == {"deep.onnx", "weights.bin", "small.onnx", "small.onnx.data"}
        assert large.get("error", 0.0) < 1e-4
