from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.errors import ModelError, OptionError
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.quantizable import MODES, Mode, Ready, check_quantizable, made_ready
from onnx_lowrank.runtime.quantizer import quantized, untaken
from tests import fixtures_models as fm

X, _ = fm.classified(64)
PICTURES = fm.pictures(32)
#: largest relative error of outputs; weights of eight bits saturate on processors without VNNI
NEAR, SATURATED = 0.05, 0.1


def ready(proto: ModelProto, mode: Mode = "dynamic", feeds: Any = None) -> Ready:
    feeds = [{"x": X[i : i + 16]} for i in range(0, 64, 16)] if feeds is None else feeds
    return made_ready(load(proto), mode, feeds)


def static(proto: ModelProto) -> Ready:
    return ready(proto, "static", [{"x": PICTURES[:16]}, {"x": PICTURES[16:]}])


def kinds(model: Model) -> set[str]:
    return {n.op_type for n in model.proto.graph.node}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("narrow", [False, True])
def test_outputs_stay_near(mode: Mode, narrow: bool) -> None:
    proto = fm.classifier()
    made = quantized(ready(proto, mode), narrow=narrow)
    new, old = (fm.run(m, {"x": X})["y"] for m in (made.proto, proto))
    assert 0 < fm.relative(new, old) < (NEAR if narrow else SATURATED)
    assert made.bytes < 0.5 * Model(proto).bytes
    # the weights of each output lie on a grid of 255 (127) steps from its largest value
    found = {t.name: numpy_helper.to_array(t) for t in made.proto.graph.initializer}
    whole = next(v for v in found.values() if v.dtype == np.int8 and v.size == 64 * 64)
    assert np.abs(whole).max() == (64 if narrow else 127)
    axis = 0 if np.all(np.abs(whole).max(0) >= 60) and mode == "dynamic" else 1
    assert np.all(np.abs(whole).max(axis) >= 60), "a scale for each output"


def test_convolutions_with_and_without_the_rest() -> None:
    proto = fm.residual_net()
    given = static(proto)
    assert given.layers == ("conv0", "conv1", "conv2", "conv3")
    layers, every = quantized(given), quantized(given, every_kind=True)
    # a ReLU is where the range of its output begins
    assert ("Relu" in kinds(layers), "Relu" in kinds(every)) == (True, False)
    old = fm.run(proto, {"x": PICTURES})["y"]
    for made in (layers, every):
        onnx.checker.check_model(made.proto, full_check=True)
        assert fm.relative(fm.run(made.proto, {"x": PICTURES})["y"], old) < SATURATED
    # ranges are those of all samples, not of the last
    values = [fm.run(m.proto, {"x": PICTURES[16:]})["y"] for m in (layers, quantized(given))]
    assert np.array_equal(*values)
    one = made_ready(load(proto), "static", [{"x": PICTURES[i : i + 1]} for i in range(32)])
    assert quantized(one).proto == layers.proto


@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_keeps_its_weights(mode: Mode) -> None:
    proto = fm.classifier()
    made = quantized(ready(proto, mode), leaving=["first"])
    floats = {t.name for t in made.proto.graph.initializer if t.data_type == 1 and len(t.dims) > 1}
    assert any(name.startswith("w1") for name in floats)
    assert not any(name.startswith("w2") for name in floats)
    with pytest.raises(OptionError, match="no layer is left"):
        quantized(ready(proto, mode), leaving=["first", "second"])


@pytest.mark.parametrize("mode", MODES)
def test_the_interface_is_kept(mode: Mode) -> None:
    proto = fm.classifier()
    proto.producer_name, proto.producer_version, proto.doc_string = "me", "7", "a net"
    proto.metadata_props.add(key="k", value="v")
    made = quantized(ready(proto, mode)).proto
    for name in ("ir_version", "producer_name", "producer_version", "doc_string"):
        assert getattr(made, name) == getattr(proto, name)
    assert list(made.opset_import) == list(proto.opset_import)
    assert list(made.metadata_props) == list(proto.metadata_props)
    assert list(made.graph.input) == list(proto.graph.input)
    assert list(made.graph.output) == list(proto.graph.output)
    assert list(made.graph.value_info) == list(proto.graph.value_info)
    assert quantized(ready(proto, mode)).proto == made


def test_nodes_without_names_are_told_apart() -> None:
    proto = fm.classifier()
    for node in proto.graph.node:
        node.name = "same" if node.op_type == "Gemm" else ""
    given = ready(proto)
    assert len(set(given.layers)) == 2
    assert given.layers[0] == "same"
    assert not {n.name for n in proto.graph.node} - {"same", ""}, "the model itself is not changed"


@pytest.mark.parametrize(("mode", "opset", "least"), [("static", 11, 13), ("dynamic", 9, 11)])
def test_an_old_opset_is_raised_and_said(mode: Mode, opset: int, least: int) -> None:
    proto = fm.classifier()
    proto.opset_import[0].version = opset
    given = ready(proto, mode)
    assert given.remarks == (f"the opset is {least}, not {opset}: int8 needs operators of it",)
    made = quantized(given)
    assert made.proto.opset_import[0].version == least
    assert fm.relative(fm.run(made.proto, {"x": X})["y"], fm.run(proto, {"x": X})["y"]) < SATURATED
    assert ready(fm.classifier(), mode).remarks == ()


def test_an_opset_that_cannot_be_raised() -> None:
    proto = fm.classifier()
    proto.opset_import[0].version = 11
    proto.graph.node.add(op_type="Unheard", input=["y"], output=["z"])
    with pytest.raises(ModelError, match="int8 needs opset 13, and onnx cannot convert"):
        ready(proto, "static")


def test_weights_that_follow_from_constants() -> None:
    """As torch exports them: through Identity, or cut out of larger ones."""
    rng = np.random.default_rng(3)
    weights = {
        "w": fm.float32(rng.standard_normal((64, 32)) / 8),
        "r": fm.float32(rng.standard_normal((2, 128, 32)) / 8),
        "start": np.array([1]), "end": np.array([2]), "axis": np.array([0]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Identity", ["w"], ["wi"]),
        helper.make_node("MatMul", ["x", "wi"], ["h"], name="product"),
        helper.make_node("Unsqueeze", ["h", "axis"], ["s"]),
        helper.make_node("Slice", ["r", "start", "end", "axis"], ["rs"]),
        helper.make_node("LSTM", ["s", "rs", "rs"], ["", "last"], name="lstm", hidden_size=32),
        helper.make_node("Squeeze", ["last", "axis"], ["y"]),
    ]
    proto = fm.build(nodes, {"x": ["N", 64]}, {"y": None}, weights)
    given = ready(proto)
    assert given.layers == ("product", "lstm")
    made = quantized(given, narrow=True)
    assert untaken(given, made) == ()
    assert {"MatMulInteger", "DynamicQuantizeLSTM"} <= kinds(made)
    assert made.bytes < 0.5 * Model(proto).bytes
    assert fm.relative(fm.run(made.proto, {"x": X})["y"], fm.run(proto, {"x": X})["y"]) < SATURATED
    assert untaken(given, quantized(given, leaving=["lstm"])) == ("lstm",)


def test_what_the_quantizer_does_not_take_is_not_counted() -> None:
    proto = fm.classifier()
    proto.graph.node[0].attribute.add(name="alpha", f=0.5, type=1)
    given = ready(proto)
    assert given.layers == ("first", "second")
    assert untaken(given, quantized(given)) == ("first",)


def test_models_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_quantizable(load(fm.classifier()))
    with pytest.raises(OptionError, match=r"quantized already \(it has a DynamicQuantizeLinear\)"):
        check_quantizable(quantized(ready(fm.classifier())))
    with pytest.raises(OptionError, match=r"none of MatMul, .* try --quantize static"):
        ready(fm.residual_net())
    relu = fm.build([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, {})
    with pytest.raises(OptionError, match=r"--quantize static: the model has none of Conv, "):
        ready(relu, "static")
    monkeypatch.setattr(Model, "large", True)
    with pytest.raises(OptionError, match="larger than 2 GB, which one ONNX file cannot hold"):
        check_quantizable(load(fm.classifier()))


def test_what_the_quantizer_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("odd\nand more")

    given = ready(fm.classifier())
    monkeypatch.setattr(onnxruntime.quantization, "quantize_dynamic", fail)
    with pytest.raises(ModelError, match=r"could not quantize \(.*odd.*\); leave the option out"):
        quantized(given)


def test_logging_is_left_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    before = (list(logging.getLogger().handlers), logging.root.manager.disable)
    quantized(static(fm.residual_net()))
    assert (list(logging.getLogger().handlers), logging.root.manager.disable) == before
    assert caplog.records == []
