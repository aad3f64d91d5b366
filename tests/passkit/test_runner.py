"""Passes that fail, or give back what cannot be used: the error names the pass and the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

import onnx_lowrank
from onnx_lowrank.analysis.cost import tensor_shapes
from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.errors import OptionError, PassError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer, find_layers
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.passes import FoldBatchnorm, PruneChannels, Svd
from onnx_lowrank.passkit.base import Edit, Rewrite, Skip
from onnx_lowrank.passkit.channel_selection import Selection
from onnx_lowrank.passkit.runner import canonicalise, order, refined
from onnx_lowrank.planning.asking import Question
from onnx_lowrank.planning.candidates import Candidate
from onnx_lowrank.planning.proposals import cut_candidate, make_choices
from onnx_lowrank.progress import Progress
from tests import fixtures_models as fm

Labels = npt.NDArray[np.intp]


def boom(*_: Any, **__: Any) -> Any:
    raise KeyError("a mistake of the author")


# rewrites


@dataclass(frozen=True)
class Renaming(Rewrite):
    """Runs whatever it is given."""

    name: ClassVar[str] = "renaming"

    edit: Callable[[Graph], None] = boom

    @property
    def spec(self) -> str:
        return self.name

    def run(self, graph: Graph, max_edits: int | None = None) -> Sequence[Edit]:
        self.edit(graph)
        return [Edit("first", "edited")]


def read_nothing(graph: Graph) -> None:
    graph.change(graph.nodes[-1], {0: "nowhere"})


def drop_output(graph: Graph) -> None:
    graph.replace([graph.nodes[-1]], list)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (boom, "KeyError: 'a mistake of the author'"),
        (
            read_nothing,
            "broken model, .* reads 'nowhere', which no node produces",
        ),
        (drop_output, "the rewritten model: .*a model without nodes"),
    ],
)
def test_a_rewrite_that_breaks_the_model_is_named(
    edit: Callable[[Graph], None], reason: str
) -> None:
    source = load(fm.classifier())
    with pytest.raises(PassError, match=f"pass renaming failed on the model: .*{reason}") as found:
        canonicalise(source, [FoldBatchnorm(), Renaming(edit)])
    assert found.value.exit_code == 2


def test_rewrites_that_keep_the_model_whole_are_run_in_order() -> None:
    seen: list[str] = []
    source = load(fm.classifier())
    passes = [Renaming(lambda _, n=n: seen.append(n)) for n in ("one", "two")]  # type: ignore[misc]
    assert canonicalise(source, passes).proto == canonicalise(source, []).proto
    assert seen == ["one", "two"]


# factorizations


class Broken(Svd):
    """Svd whose part named ``where`` fails."""

    where: ClassVar[str] = ""

    def refuses(self, layer: Layer) -> Skip | None:
        if self.where == "reason":
            return "not for this layer"  # type: ignore[return-value]
        return boom() if self.where == "refuses" else super().refuses(layer)

    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Any]:
        assert type(layer) is Layer  # never where it stands in a graph
        if self.where == "propose":
            boom()
        return [Form(d, self.where) for d in super().propose(layer, moments, max_parameters)]


class Form:
    """A decomposition whose method named ``where`` fails."""

    def __init__(self, whole: Any, where: str) -> None:
        self._whole, self._where = whole, where

    def __getattr__(self, name: str) -> Any:
        if name == self._where:
            boom()
        return getattr(self._whole, name)

    def cut(self, rank: int) -> Any:
        if self._where == "cut":
            boom()
        chain = self._whole.cut(rank)
        return type(chain)(chain.stages[:1]) if self._where == "half" else chain


def proposed(where: str) -> Any:
    proto = fm.classifier()
    layers = find_layers(Graph(load(proto)))[0]
    moments = {layer.name: Moments() for layer in layers}
    shapes = tensor_shapes(load(proto), {"x": (1, 64)})
    broken = type("Broken", (Broken,), {"where": where})()
    found = make_choices(layers, Question([broken], "macs"), moments, shapes, {}, Progress())
    return broken, layers[0].value, found


@pytest.mark.parametrize("where", ["refuses", "propose", "ranks", "error", "outline", "variant"])
def test_a_factorization_that_fails_is_named_with_its_layer(where: str) -> None:
    with pytest.raises(PassError, match=r"pass svd failed on layer 'first': KeyError") as found:
        proposed(where)
    assert found.value.exit_code == 2
    assert isinstance(found.value.__cause__, KeyError)


def test_a_refusal_that_is_no_skip_is_named() -> None:
    with pytest.raises(PassError, match="pass svd failed on layer 'first': AttributeError"):
        proposed("reason")


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("cut", "KeyError: 'a mistake of the author'"),
        ("half", "its chain maps 64 channels to 8, the layer 64 to 64"),
    ],
)
def test_a_chain_that_cannot_be_had_is_named(where: str, reason: str) -> None:
    broken, layer, _ = proposed(where)
    candidate = Candidate("svd", "", 8, 0.1, 1, 1, 1, 1)
    with pytest.raises(PassError, match=f"pass svd failed on layer 'first': {reason}"):
        cut_candidate(layer, candidate, [broken], Moments())


def test_deliberate_errors_stay_as_they_are() -> None:
    class Strict(Svd):
        def refuses(self, layer: Layer) -> Skip | None:
            raise OptionError("svd{metric=unheard}: no such metric")

    with pytest.raises(OptionError, match="no such metric"):
        onnx_lowrank.plan(fm.classifier(), passes=[Strict()], target="macs=0.5", threads=1)


def test_a_plug_in_that_fails_ends_a_whole_run_with_its_name() -> None:
    class Careless(Svd):
        def propose(self, *_: Any, **__: Any) -> Any:
            return boom()

    with pytest.raises(PassError, match=r"pass svd failed on layer 'first'.*choose other passes"):
        onnx_lowrank.plan(fm.classifier(), passes=[Careless()], target="macs=0.5", threads=1)


# prunings


SELECTION = Selection((), (np.arange(4.0), np.arange(4.0)))


class Picking(PruneChannels):
    answer: ClassVar[Any] = None

    def order(self, selection: Selection) -> Labels:
        return boom() if self.answer is None else np.array(self.answer)

    def refined(self, selection: Selection, kept: Labels) -> Labels:
        return self.order(selection)


def picking(answer: Any) -> Picking:
    made: Picking = type("Picking", (Picking,), {"answer": answer})()
    return made


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "KeyError: 'a mistake of the author'"),
        ([0, 1, 2], "its order does not name each of 4 channels once"),
        ([0, 1, 2, 2], "its order does not name each of 4 channels once"),
        ([0, 1, 2, 4], "its order does not name each of 4 channels once"),
    ],
)
def test_an_order_of_channels_is_checked(answer: Any, reason: str) -> None:
    with pytest.raises(PassError, match=f"pass prune_channels failed on channels 'g': {reason}"):
        order(picking(answer), SELECTION, "channels 'g'")
    np.testing.assert_array_equal(order(picking([2, 0, 3, 1]), SELECTION, "g"), [2, 0, 3, 1])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "KeyError: 'a mistake of the author'"),
        ([0], "its choice does not name 2 of 4 channels once each"),
        ([1, 1], "its choice does not name 2 of 4 channels once each"),
        ([1, 4], "its choice does not name 2 of 4 channels once each"),
    ],
)
def test_a_better_choice_of_channels_is_checked(answer: Any, reason: str) -> None:
    kept = np.array([0, 1])
    with pytest.raises(PassError, match=f"pass prune_channels failed on channels 'g': {reason}"):
        refined(picking(answer), SELECTION, kept, "channels 'g'")
    np.testing.assert_array_equal(refined(picking([3, 1]), SELECTION, kept, "g"), [1, 3])
