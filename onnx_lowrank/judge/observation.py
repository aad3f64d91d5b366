"""Choice of the tensors to compare in two models: outputs, or tensors in front of them.

Outputs that the original does not repeat on the same feed, such as those of random nodes, are left
out. Outputs whose shapes depend on data, such as those of NonMaxSuppression, need not have one
shape in both models: the floating-point tensors of fixed shape that they are computed from are
compared in their place, where there are any.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.values import DataShapes, before, data_shapes, no_tensors
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import Array, arrays_of, difference, is_float
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.runtime.session import Feed, Session
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Observer", "by_sample", "each_sample"]

#: operators whose results differ from run to run
_RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
})  # fmt: skip
#: number of runs of the original on one batch, where a node may be random
_RUNS = 3
#: an output counts as random if it changes by more than this part of its norm from run to run
_REPEATED = 1e-3
#: operators with weights; tensors that depend on none of them are the same in both models
_LAYERS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
#: number of steps up the graph in search of floating-point tensors
_STEPS = 12


class Observer:
    """Runs models for the tensors that can be compared.

    Attributes:
        names: names of the tensors to compare: outputs of the original, and tensors in the place
            of outputs.
        outputs: the ones among them that are outputs.
        loose: the ones that may have another shape in a correct compressed model.
        notes: sentences that say which outputs are left out or replaced.

    Args:
        reference: the original.
        data: samples; the first batch is run where a node may be random, or a shape depends on
            data.
        runtime: runs the models.
        size: number of samples in a batch.

    Raises:
        ModelError: the original does not run.
    """

    def __init__(self, reference: Model, data: Dataset, runtime: Runtime, size: int) -> None:
        self._runtime = runtime
        self.notes: list[str] = []
        graph = Graph(reference)
        shapes = data_shapes(graph)
        outputs = graph.outputs
        self.loose = frozenset(shapes.perhaps)
        self._inner: dict[str, None] = {}
        for name in [n for n in outputs if n in shapes.surely]:
            found = _in_front(graph, shapes, name, data, runtime)
            if not found:
                self.notes.append(
                    f"the shape of output {name!r} depends on the data; it is compared where both "
                    "models give the same shape"
                )
                continue
            outputs.remove(name)
            self._inner |= dict.fromkeys(found)
            self.notes.append(
                f"the shape of output {name!r} depends on the data; the tensors that it is "
                f"computed from are compared in its place: {', '.join(map(repr, found))}"
            )
        self._inner = {n: None for n in self._inner if n not in outputs}
        names = [*outputs, *self._inner]
        for name in self._unrepeated(reference, graph, data, size, names):
            names.remove(name)
            self.notes.append(
                f"the original gives different values of {name!r} each time it runs on the same "
                "samples; it is not compared"
            )
        self._inner = {n: None for n in self._inner if n in names}
        self.names = names
        self.outputs = [n for n in names if n not in self._inner]

    def session(self, model: Model) -> Session:
        """Open a model, with the tensors in the place of outputs as outputs where it has them."""
        return self.part(self.opened(model))

    def part(self, model: Model) -> Session:
        """Open a part of a model as it is."""
        return self._runtime.session(model, lean=True)

    def run(
        self, session: Session, feed: Feed, constants: Feed | None = None
    ) -> dict[str, list[Array]]:
        """Run a session; the arrays of the tensors to compare that the model has, by name."""
        wanted = [n for n in self.names if n in session.outputs]
        found = session.run(feed, wanted, constants) if wanted else {}
        return {n: arrays_of(v) for n, v in found.items()}

    def made_by(self, model: Model) -> frozenset[str]:
        """The tensors to compare that a model has."""
        graph = model.proto.graph
        made = {name for node in graph.node for name in node.output}
        made |= {o.name for o in graph.output}
        return frozenset(self.names) & made

    def opened(self, model: Model) -> Model:
        """A model with the tensors in the place of outputs as outputs where it has them."""
        graph = model.proto.graph
        made = {name for node in graph.node for name in node.output}
        shown = {o.name for o in graph.output}
        more = [n for n in self._inner if n in made and n not in shown]
        if not more:
            return model
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in more)
        return Model(proto, model.folder, scratch=model.scratch)

    def _unrepeated(
        self, reference: Model, graph: Graph, data: Dataset, size: int, names: Sequence[str]
    ) -> list[str]:
        if not names or not _may_be_random(graph):
            return []
        session = self.session(reference)
        feed = next(data.batches(size))
        runs = [session.run(feed, names) for _ in range(_RUNS)]
        return [
            name
            for name in names
            if not all(_alike(arrays_of(runs[0][name]), arrays_of(r[name])) for r in runs[1:])
        ]


def by_sample(value: Array, count: int) -> bool:
    """Whether ``value`` has an axis of ``count`` samples in front."""
    return value.ndim > 0 and len(value) == count


def each_sample(value: Array, count: int) -> Array:
    """``value`` with samples along axis 0; repeated for each sample where it has no such axis."""
    return value if by_sample(value, count) else np.repeat(value[None], count, axis=0)


def _may_be_random(graph: Graph) -> bool:
    nodes = [n for n, _ in graph.subgraph_nodes()]
    for node in (*graph.model.proto.graph.node, *nodes):
        training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
        if node.op_type in _RANDOM or training or node.domain not in ("", "ai.onnx"):
            return True
    return False


def _alike(one: Sequence[Array], other: Sequence[Array]) -> bool:
    """Whether two runs gave the same values, apart from rounding."""
    if [a.shape for a in one] != [a.shape for a in other]:
        return False
    for a, b in zip(one, other, strict=True):
        found = difference(a, b, 1)
        if found.mismatches.any() or found.noise[0] > _REPEATED**2 * found.signal[0]:
            return False
        if not is_float(a) and not found.equal.all():
            return False
    return True


def _in_front(
    graph: Graph, shapes: DataShapes, output: str, data: Dataset, runtime: Runtime
) -> list[str]:
    """Find the floating-point tensors of fixed shape that an output is computed from.

    A tensor without floating-point numbers, such as a comparison of scores, is replaced by the
    tensors that it is computed from.
    """
    boxed, found = no_tensors(graph), dict[str, None]()
    looked_at: set[str] = set()
    pending = before(graph, shapes, output)
    for _ in range(_STEPS):
        looked_at |= set(pending)
        plain = [n for n in pending if n not in boxed and _behind_layer(graph, n)]
        if not plain:
            break
        part = graph.extract(graph.input_types(), plain)
        values = runtime.session(part, lean=True).run(data.feed(0))
        found |= dict.fromkeys(n for n in plain if is_float(values[n]))
        rest = [n for n in pending if n not in found]
        above = {r for n in rest if (node := graph.producer(n)) for r in graph.reads(node)}
        pending = sorted(
            n
            for n in above - looked_at
            if n in shapes.fed and n not in shapes.surely and graph.producer(n) is not None
        )
    return list(found)


def _behind_layer(graph: Graph, tensor: str) -> bool:
    made = graph.ancestors([tensor])
    return any(t.name in made for n in graph.nodes if n.op in _LAYERS for t in n.outputs)
