"""What a pass is: a frozen dataclass whose fields are its options.

A *factorization* sees arrays and geometry, never ONNX. Of each layer that it does not refuse it
makes one or more :class:`Decomposition`, computed once and cut at many ranks. A *rewrite* edits the
graph without changing its meaning.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from onnx_lowrank.analysis.moments import Moments
from onnx_lowrank.chains.chain import Chain, Rank
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import Layer
from onnx_lowrank.passkit.channel_selection import Selection

__all__ = [
    "Decomposition",
    "Edit",
    "Factorization",
    "HeadNarrowing",
    "Iterative",
    "Pass",
    "Pruning",
    "Rewrite",
    "Skip",
    "Unfolded",
    "no_dense_kernel",
]

Array = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Skip:
    """Why a pass leaves a layer alone."""

    reason: str


class Decomposition(Protocol):
    """One layer taken apart at every rank."""

    @property
    def variant(self) -> str:
        """Which form of the method this is; empty where there is only one."""

    def ranks(self) -> Iterable[Rank]:
        """Ranks worth considering, on the grid that runtimes like."""

    def error(self, rank: Rank) -> float:
        """Relative response error at ``rank``, between 0 and 1, cheap for a whole grid."""

    def outline(self, rank: Rank) -> Chain:
        """The chain of ``rank`` without its numbers, for counting its cost."""

    def cut(self, rank: Rank) -> Chain:
        """The chain of ``rank``, or of what there is of it, its bias corrected, float64."""


@runtime_checkable
class Iterative(Protocol):
    """A decomposition that is found step by step, and may start from that of a similar layer."""

    def cut_from(self, rank: Rank, near: Chain) -> Chain:
        """The chain of ``rank`` as :meth:`Decomposition.cut` has it, in fewer steps.

        Args:
            rank: rank of the chain.
            near: chain of the same form and rank, of a layer with similar weights and moments.
        """


@runtime_checkable
class Unfolded(Protocol):
    """A decomposition whose ranks are those of matrices that its layer's weights unfold to."""

    def unfoldings(self) -> Sequence[Sequence[Array]]:
        """The matrices of each group, one for each place of a rank."""


@dataclass(frozen=True)
class Pass(abc.ABC):
    """Base of all passes."""

    name: ClassVar[str]

    @classmethod
    def explain(cls) -> str:
        """The documentation of the pass: its module's, then its options."""
        module = inspect.getmodule(cls)
        text = inspect.cleandoc((module.__doc__ if module else None) or cls.__doc__ or "")
        options = [f"    {f.name} = {f.default!r}" for f in fields(cls)]
        return text + ("\n\nOptions:\n" + "\n".join(options) if options else "")

    @property
    def spec(self) -> str:
        """The pass as the command line names it: ``spatial_svd{split=vh}``."""
        options = [
            f"{f.name}={getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + ("{" + ",".join(options) + "}" if options else "")


@dataclass(frozen=True)
class Factorization(Pass):
    """Replaces one layer by a chain of cheaper ones.

    Attributes:
        ops: operators whose layers it may be asked about; others are skipped for it.
        slow: whether each rank is a solution of its own.
        saves_macs: whether its chains multiply less than the layer. Where they multiply more, they
            save parameters and bytes, and are considered under targets on these alone.
    """

    ops: ClassVar[frozenset[str]] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
    slow: ClassVar[bool] = False
    saves_macs: ClassVar[bool] = True

    def skips(self, layer: Layer) -> Skip | None:
        """Why this pass leaves ``layer`` alone; None if it does not."""
        return self.refuses(layer) if layer.op in self.ops else Skip(f"is not for {layer.op}")

    @abc.abstractmethod
    def refuses(self, layer: Layer) -> Skip | None:
        """Why this pass leaves ``layer`` alone, by its shape and geometry; None if not."""

    @abc.abstractmethod
    def propose(
        self, layer: Layer, moments: Moments, max_parameters: int | None = None
    ) -> Sequence[Decomposition]:
        """Take ``layer``, which is not refused, apart, in each form that the method has.

        Several layers may be taken apart at once, on threads of their own.

        Args:
            layer: the layer; it is not changed.
            moments: of its input.
            max_parameters: ranks whose chain has more parameters need not be computed.
        """


@dataclass(frozen=True)
class Pruning(Pass):
    """Chooses channels that go; the engine cuts them out and solves their readers again."""

    @abc.abstractmethod
    def order(self, selection: Selection) -> npt.NDArray[np.intp]:
        """Channels of a group ``(G,)``, the ones to keep longest first."""

    def refined(self, selection: Selection, kept: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Choose as many channels as ``kept`` at no greater loss; the best sets are not nested."""
        return kept

    @property
    @abc.abstractmethod
    def options(self) -> PruningOptions:
        """How the engine is to go about it."""


@dataclass(frozen=True)
class PruningOptions:
    """What a pruning pass leaves to the engine.

    Attributes:
        solve: whether the weights of the readers are solved again.
        chain: ``parallel``: every group by the original's data; ``bottom_up``: from the output,
            without regard to outputs that go; ``top_down``: from the input, on the data as the
            pruned prefix makes it.
        gather: whether a single layer may read fewer channels through a Gather.
        keep: part of each group that stays; 0 leaves it to the planner.
        optional: whether it is only one of the defaults: where it can be of no use beside
            factorizations, as under a rule for ranks, it is left out without a word.
        heads: whether whole heads of attention may go.
    """

    solve: bool
    chain: str
    gather: bool
    keep: float
    optional: bool = False
    heads: bool = False


@dataclass(frozen=True)
class HeadNarrowing(Pass):
    """Chooses bases in which channels of attention heads may go; the engine removes the last ones.

    Attributes:
        optional: whether it is only one of the defaults, as in :class:`PruningOptions`.
    """

    optional: bool = False

    @abc.abstractmethod
    def scores(self, queries: Array, keys: Array) -> tuple[Array, Array, Array]:
        """Bases of the queries and keys of a head, most important channel first.

        Args:
            queries: second moment ``(d, d)`` of the queries.
            keys: moment ``(d, d)`` of the keys, under the metric in which errors of scores reach
                the output.

        Returns:
            ``Tq (d, d)`` and ``Tk (d, d)`` with ``Tq^T Tk = I``, and errors ``(d + 1,)`` by number
            of channels left.
        """

    @abc.abstractmethod
    def values(self, gram: Array, covariance: Array) -> Array:
        """Invertible basis ``(d, d)`` of the values of a head, most important channel first.

        Args:
            gram: ``W^T W (d, d)`` of the layer that reads the mixed values.
            covariance: ``(d, d)`` of the mixed values.
        """


@dataclass(frozen=True)
class Edit:
    """One thing that a rewrite did."""

    node: str
    what: str


@dataclass(frozen=True)
class Rewrite(Pass):
    """Edits a graph without changing what it computes."""

    @abc.abstractmethod
    def run(self, graph: Graph, max_edits: int | None = None) -> Sequence[Edit]:
        """Edit ``graph`` in place and say what was done; at most ``max_edits`` edits."""


def no_dense_kernel(layer: Layer) -> Skip | None:
    """What methods for kernels over taps and channels answer where one of the two is missing."""
    if all(k == 1 for k in layer.geometry.kernel):
        return Skip("has no spatial kernel")
    if layer.depthwise:
        return Skip("is depthwise: each group reads one channel")
    return None
