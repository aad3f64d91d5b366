"""Small models with known properties, and the engine without its clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnx_lowrank.analysis.streaming import Streaming
from onnx_lowrank.cli import main as cli
from onnx_lowrank.engine.api import Result, compress
from onnx_lowrank.modelfile import model as model_module
from onnx_lowrank.modelfile import saving
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.progress import Progress
from onnx_lowrank.runtime import runtime as runtime_module
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed
from onnx_lowrank.samples.dataset import Dataset, input_specs, load_dataset
from tests.scripted_timer import taking

AnyArray = npt.NDArray[Any]

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "models" / "digits.npz"
SHARED = ROOT.parent / "shared"
ONE_THREAD = Runtime(threads=1)


def streaming(memory: int = 10**9) -> Streaming:
    """One thread, no progress, seed 0."""
    return Streaming(ONE_THREAD, 0, Progress(), memory)


def digits(net: str) -> Path:
    return ROOT / "models" / f"digits_{net}.onnx"


def build(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Sequence[int | str | None] | None],
    outputs: Mapping[str, Sequence[int | str | None] | None],
    weights: Mapping[str, AnyArray],
    opset: int = 17,
) -> ModelProto:
    """A float32 model."""

    def infos(values: Mapping[str, Sequence[int | str | None] | None]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in values.items()]

    tensors = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs), tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if None not in (*inputs.values(), *outputs.values()):
        onnx.checker.check_model(proto, full_check=True)
    return proto


def float32(values: AnyArray) -> AnyArray:
    return values.astype(np.float32)


def classifier(
    width: int = 64, batch: int | str = "N", classes: int = 8, decay: float = 0.8
) -> ModelProto:
    """Two Gemm with a ReLU between them, the first of quickly falling singular values."""
    rng = np.random.default_rng(7)
    left, _ = np.linalg.qr(rng.standard_normal((width, width)))
    right, _ = np.linalg.qr(rng.standard_normal((width, width)))
    weights = {
        "w1": float32(3 * (left * decay ** np.arange(width)) @ right),
        "b1": float32(0.1 * rng.standard_normal(width)),
        "w2": float32(rng.standard_normal((classes, width))),
        "b2": float32(0.1 * rng.standard_normal(classes)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"], name="second", transB=1),
    ]
    return build(nodes, {"x": [batch, width]}, {"y": [batch, classes]}, weights)


def dressed() -> ModelProto:
    """A model with something in every field that a tool could lose."""
    proto = classifier()
    proto.ir_version = 7
    proto.producer_name, proto.producer_version = "maker", "1.2"
    proto.domain, proto.model_version, proto.doc_string = "org.example", 3, "what it is"
    proto.graph.doc_string = "the graph"
    proto.graph.node[0].doc_string = "the node"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.metadata_props.add(key="labels", value="a,b")
    return proto


def classified(count: int, width: int = 64) -> tuple[AnyArray, AnyArray]:
    """Inputs of :func:`classifier`, and the classes it gives them as labels."""
    x = float32(np.random.default_rng(8).standard_normal((count, width)))
    return x, run(classifier(width), {"x": x})["y"].argmax(1)


def residual_net(channels: int = 12, size: int = 7, bias: bool = True) -> ModelProto:
    """Four random 3x3 convolutions, two of them in residual branches; batch ``N``."""
    rng = np.random.default_rng(9)
    weights: dict[str, AnyArray] = {}
    for i in range(4):
        inputs = 3 if i == 0 else channels
        scale = np.sqrt(2 / (9 * inputs))
        weights[f"w{i}"] = float32(scale * rng.standard_normal((channels, inputs, 3, 3)))
        if bias:
            weights[f"bias{i}"] = float32(0.1 * rng.standard_normal(channels))

    def conv(i: int, x: str, y: str) -> NodeProto:
        operands = [x, f"w{i}", *([f"bias{i}"] if bias else [])]
        return helper.make_node("Conv", operands, [y], name=f"conv{i}", pads=[1, 1, 1, 1])

    def plain(op: str, y: str, *x: str) -> NodeProto:
        return helper.make_node(op, list(x), [y], name=f"{op}_{y}")

    nodes = [
        conv(0, "x", "a0"), plain("Relu", "a", "a0"),
        conv(1, "a", "b0"), plain("Add", "b1", "b0", "a"), plain("Relu", "b", "b1"),
        conv(2, "b", "c0"), plain("Add", "c1", "b", "c0"), plain("Relu", "c", "c1"),
        conv(3, "c", "y"),
    ]  # fmt: skip
    shape: list[int | str] = ["N", 3, size, size]
    return build(nodes, {"x": shape}, {"y": ["N", channels, size, size]}, weights)


def pictures(count: int, seed: int = 0, size: int = 7) -> AnyArray:
    """Inputs of :func:`residual_net`, smooth and off centre as real ones are."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 2, 2)).repeat(4, 2).repeat(4, 3)[:, :, :size, :size]
    return float32(coarse + 0.3 * rng.standard_normal((count, 3, size, size)) + 0.5)


def dataset(proto: ModelProto, data: Any, **options: Any) -> Dataset:
    return load_dataset(data, input_specs(load(proto)), **options)


def run(model: ModelProto | Path, feed: Feed) -> dict[str, AnyArray]:
    """Outputs in plain ONNX Runtime, its graph optimisations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    source = model if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feed)), strict=True))


def relative(new: AnyArray, reference: AnyArray) -> float:
    """``|new - reference| / |reference|``."""
    difference = new.astype(np.float64) - reference
    return float(np.linalg.norm(difference) / np.linalg.norm(reference))


def shrink_limits(patch: pytest.MonkeyPatch, proto: int, piece: int) -> None:
    """Let models of more than ``proto`` bytes be kept in files, and run in pieces of ``piece``."""
    for module in (model_module, saving):
        patch.setattr(module, "LARGEST_PROTO", proto)
    patch.setattr(runtime_module, "PIECE", piece)


def quick_compress(model: Path | ModelProto, **options: Any) -> Result:
    """:func:`compress` on one thread, without timing or caching anything, planned once.

    To half the MACs, where nothing else is asked for.
    """
    usual: dict[str, Any] = {"timer": taking(0.5), "threads": 1, "effort": "quick", "cache": ""}
    if not options.keys() & {"ranks", "max_drop", "min_agreement", "min_snr", "max_loss"}:
        usual["target"] = "macs=0.5"
    return compress(model, **{**usual, **options})


def external(folder: Path, proto: ModelProto) -> Path:
    """``proto`` saved with all its weights in ``weights.bin``."""
    path = folder / "big.onnx"
    copy = ModelProto()
    copy.CopyFrom(proto)
    onnx.save(copy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def command(argv: Sequence[str], ratio: float = 0.5) -> int:
    """The exit code of a command that finds results to take ``ratio`` of the time."""
    return cli.main(argv, taking(ratio))


def refused(
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
    code: int,
    *parts: str,
    ratio: float = 0.5,
) -> None:
    """The command exits with ``code`` and one line on stderr that has ``parts``."""
    assert command(argv, ratio) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in err
