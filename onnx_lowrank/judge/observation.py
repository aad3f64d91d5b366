"""Choose what of two models is compared: outputs, or tensors in front of them.

Outputs that the original does not repeat on the same feed, as those of random nodes, are left out.
Outputs whose shapes the data decide, as those of NonMaxSuppression, need not have one shape in both
models: in their place stand the floating-point tensors of fixed shape that they are made of, where
there are any.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.graph.values import DataShapes, before, data_shapes, no_tensors
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import Array, arrays_of, difference, is_float
from onnx_lowrank.runtime.runtime import Feed, Runtime, Session
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["Observer"]

#: operators whose results differ from run to run
_RANDOM = frozenset({
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
    "RandomUniformLike",
})  # fmt: skip
#: runs of the original on one batch, where something in it may be random
_RUNS = 3
#: outputs that differ by more than this part of themselves from run to run are not repeated
_REPEATED = 1e-3
#: operators with weights; what stands behind none of them is the same in both models
_LAYERS = frozenset({"Conv", "ConvTranspose", "GRU", "Gemm", "LSTM", "MatMul", "RNN"})
#: steps up the graph in search of floating-point tensors
_STEPS = 12


class Observer:
    """Opens models so that they give what is compared, and nothing that cannot be.

    Attributes:
        names: what is compared: outputs of the original, and tensors in the place of outputs.
        outputs: those of them that are outputs.
        loose: those that may have another shape in another model, without its being at fault.
        notes: what is left out or put in the place of an output, one sentence each.

    Args:
        reference: the original.
        data: samples; the first batch is run where something may be random, or has no fixed shape.
        runtime: how to run.
        size: samples at a time.

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
                    f"the data decide the shape of output {name!r}; it is compared where both "
                    "models give the same shape"
                )
                continue
            outputs.remove(name)
            self._inner |= dict.fromkeys(found)
            self.notes.append(
                f"the data decide the shape of output {name!r}; what it is made of is compared in "
                f"its place: {', '.join(map(repr, found))}"
            )
        self._inner = {n: None for n in self._inner if n not in outputs}
        names = [*outputs, *self._inner]
        for name in self._unrepeated(reference, graph, data, size, names):
            names.remove(name)
            self.notes.append(
                f"the original gives another {name!r} each time that it runs on the same samples; "
                "it is not compared"
            )
        self._inner = {n: None for n in self._inner if n in names}
        self.names = names
        self.outputs = [n for n in names if n not in self._inner]

    def session(self, model: Model) -> Session:
        """Open a model; tensors in the place of outputs become outputs where it has them."""
        return self._runtime.session(self._opened(model), lean=True)

    def run(self, session: Session, feed: Feed) -> dict[str, list[Array]]:
        """Arrays of all that is compared and that the model has, by name."""
        wanted = [n for n in self.names if n in session.outputs]
        return {n: arrays_of(v) for n, v in session.run(feed, wanted).items()} if wanted else {}

    def _opened(self, model: Model) -> Model:
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
        session = self._runtime.session(self._opened(reference), lean=True)
        feed = next(data.batches(size))
        runs = [session.run(feed, names) for _ in range(_RUNS)]
        return [
            name
            for name in names
            if not all(_alike(arrays_of(runs[0][name]), arrays_of(r[name])) for r in runs[1:])
        ]


def _may_be_random(graph: Graph) -> bool:
    nodes = [n for n, _ in graph.subgraph_nodes()]
    for node in (*graph.model.proto.graph.node, *nodes):
        training = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
        if node.op_type in _RANDOM or training or node.domain not in ("", "ai.onnx"):
            return True
    return False


def _alike(one: Sequence[Array], other: Sequence[Array]) -> bool:
    """Whether two runs gave the same, but for the rounding of numbers."""
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
    """Floating-point tensors that an output is made of, whose shapes no data decide.

    Where a tensor holds no floating-point numbers, as a comparison of scores, those that it is
    made of are looked at instead.
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
