"""Channel groups of the architectures in the onnx package, at an eighth of their width."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from onnx_lowrank.channels.cut import cut_groups
from onnx_lowrank.layers import find_layers
from tests.fixtures_channels import groups_of, silenced
from tests.support import checked, relative, rng, run

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def light(name: str, factor: int) -> ModelProto:
    """A model with random weights, ``factor`` times narrower; the file has no weights itself."""
    proto = onnx.load(LIGHT / f"light_{name}.onnx")
    random, graph = rng(len(name)), proto.graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}

    def narrow(shape: list[int]) -> list[int]:
        return [n // factor if n >= 16 and n % factor == 0 else n for n in shape]

    weights, nodes = {}, []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            nodes.append(node)
            continue
        shape = narrow(held[node.input[0]].tolist())
        values = random.uniform(0.5, 1.5, shape)
        if len(shape) > 1:
            values = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        weights[node.output[0]] = values.astype(np.float32)
    for key, value in held.items():
        if value.dtype == np.int64 and value.ndim:
            weights[key] = np.asarray(narrow(value.tolist()), np.int64)
        else:
            weights[key] = value[tuple(map(slice, narrow(list(value.shape))))]
    fed = [i for i in graph.input if i.name not in weights and i.name not in held]
    used = {name for node in nodes for name in node.input}
    inputs = [i for i in fed if i.name in used]
    outputs = [helper.make_tensor_value_info(o.name, 1, None) for o in graph.output]
    tensors = [numpy_helper.from_array(v, k) for k, v in weights.items() if k in used]
    made = helper.make_graph(nodes, name, inputs, outputs, tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(made, opset_imports=proto.opset_import, ir_version=8)
    )


#: groups that may be pruned, and how often each operator keeps one whole
EXPECTED = {
    "bvlc_alexnet": (5, {"LRN": 2, "Softmax": 1}),
    "densenet121": (120, {"graph output": 1}),
    "inception_v1": (55, {"LRN": 2, "Softmax": 1}),
    "inception_v2": (69, {"Softmax": 1}),
    "resnet50": (37, {"Softmax": 1}),
    # where a shuffle mixes groups that do not divide its groups
    "shufflenet": (13, {"all channels are tied": 4, "Softmax": 1}),
    "squeezenet": (25, {"Softmax": 1}),
    "vgg19": (18, {"Softmax": 1}),
    "zfnet512": (5, {"LRN": 2, "Softmax": 1}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_light_models(name: str) -> None:
    proto = light(name, 1 if name == "shufflenet" else 8)
    graph, groups = groups_of(proto, batch=1)
    prunable, frozen = EXPECTED[name]
    assert sum(g.prunable for g in groups) == prunable
    reasons = [g.frozen for g in groups if g.frozen is not None]
    assert {k: sum(r.startswith(k) for r in reasons) for k in frozen} == frozen
    assert len(groups) == prunable + sum(frozen.values())
    made: Counter[str] = Counter()
    for group in groups:
        for producer in group.producers:
            made[producer.name] += sum(map(len, producer.rows))
    for layer in find_layers(graph)[0]:
        assert made[layer.name] == (0 if layer.value.depthwise else layer.shape[0])
    cuts, quiet = [], proto
    for seed, group in enumerate(groups):
        if group.prunable:
            removed = rng(seed).permutation(group.size)[: group.size // 3].tolist()
            cuts.append((group, [i for i in range(group.size) if i not in removed]))
            quiet = silenced(quiet, group, removed)
    cut_groups(graph, cuts)
    (fed,) = graph.inputs
    x = {fed: rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    loud, wanted, got = run(proto, x), run(quiet, x), run(checked(graph), x)
    for output, value in wanted.items():
        assert relative(value, got[output]) < 1e-4
        assert relative(loud[output], value) > 1e-2  # what was cut did something
