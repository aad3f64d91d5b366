"""A model whose layers can be given other weights from run to run, without being opened again.

To cut a channel is to multiply it by zero, and a chain is a layer of the chain's dense kernel. So
models that differ in what became of their layers are one model with other values of its constants:
to try them all, ONNX Runtime opens it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers.finder import find_layers
from onnx_lowrank.layers.writer import Written, apply_chain, constants_of
from onnx_lowrank.modelfile.model import Model

__all__ = ["VariableModel", "make_inputs"]

#: from here on an initializer may be given another value in a run
_OVERRIDABLE = 4


class VariableModel:
    """A model whose layers can be given other weights.

    Attributes:
        model: the model; constants of its layers are inputs too, and need not be fed.
        layers: names of these layers.

    Args:
        model: the model to begin with; it is not changed.
        stages: what the layers are unless they are given something else, by name.
    """

    def __init__(self, model: Model, stages: Mapping[str, Stage]) -> None:
        graph = Graph(model)
        self._written: dict[str, Written] = {}
        for layer in find_layers(graph)[0]:
            if layer.name in stages:
                chain = Chain((_biased(stages[layer.name]),))
                self._written[layer.name] = apply_chain(graph, layer, chain)
        # under the names that the constants were written by
        self.model = graph.extract(graph.input_types(), graph.outputs)
        constants = [c for w in self._written.values() for c in w.constants]
        make_inputs(self.model.proto, constants)
        self.layers = self._written.keys()

    def constants(self, stages: Mapping[str, Stage]) -> dict[str, npt.NDArray[Any]]:
        """The constants that make layers what they are given as, to be fed beside the inputs.

        Args:
            stages: layers by name, of the shapes that they had at first.
        """
        return {
            name: values
            for layer, stage in stages.items()
            for name, values in constants_of(self._written[layer], Chain((_biased(stage),)))
        }


def _biased(stage: Stage) -> Stage:
    return stage if stage.bias is not None else stage.with_bias(np.zeros(stage.outputs))


def make_inputs(proto: onnx.ModelProto, constants: Iterable[str]) -> None:
    """Make initializers inputs too, and no others."""
    proto.ir_version = max(proto.ir_version, _OVERRIDABLE)
    initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
    given = [value for value in proto.graph.input if value.name not in initializers]
    del proto.graph.input[:]
    proto.graph.input.extend(given)
    for name in constants:
        tensor = initializers[name]
        proto.graph.input.append(
            onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        )
