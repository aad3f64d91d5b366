"""A memory of what was computed, by what it depends on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from onnx_lowrank.analysis.moment_cache import MomentCache
from onnx_lowrank.analysis.preparation import Prepared
from onnx_lowrank.channels.cut import Remains
from onnx_lowrank.planning.chain_cutter import ChainCutter
from onnx_lowrank.planning.plan import GroupDecision
from onnx_lowrank.planning.proposals import Proposals
from onnx_lowrank.planning.timed_candidates import Timed
from onnx_lowrank.pruning.head_moments import ScoreMoments
from onnx_lowrank.pruning.pruner import Pruner
from onnx_lowrank.pruning.shared_budget import Shared

__all__ = ["Channels", "Cut", "Memo", "Recent"]

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were asked for last, by key.

    Args:
        most: values that are kept; the one that was not asked for longest goes first.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of ``key``, made where it is not there."""
        value = self._values.pop(key) if key in self._values else make()
        self._values[key] = value
        while len(self._values) > self._most:
            del self._values[next(iter(self._values))]
        return value

    def values(self) -> Iterator[V]:
        """What is kept, the value asked for last coming last."""
        return iter(list(self._values.values()))

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()


@dataclass(frozen=True)
class Cut:
    """A model without some of its channels.

    Attributes:
        work: the model; the canonical one itself where no channel goes.
        remains: what is left of its tensors.
        reference: the original, whose layers make the channels of heads in the bases that these
            were cut in.
    """

    work: Prepared
    remains: Remains
    reference: Prepared


#: channels that stay, and a decision for every group where pruning was considered
Channels = tuple[Shared, tuple[GroupDecision, ...]]


@dataclass(frozen=True)
class Memo:
    """What was computed once and may be asked for again; results never depend on it.

    Attributes:
        pruners: by metric, and whether losses are measured.
        channels: channels that stay and decisions on all groups, by target and share, and whether
            losses are measured.
        cuts: by the channels that stay.
        scores: moments of queries and keys.
        weights: factors of groups of channels, by their names.
        whole: proposals of the whole model, by metric and rule.
        layers: proposals of single layers, by name, channels, metric and rule.
        narrowed: proposals of models without some channels, by channels, metric and rule.
        timed: proposals with times as costs, likewise.
        chains: that were cut for layers.
        rounded: what int8 adds to the errors of chains, by layer, channels, form and rank.
        unfinished: files of moments, which are kept until the job is done.
    """

    chains: ChainCutter
    pruners: Recent[Hashable, Pruner] = field(default_factory=lambda: Recent(4))
    channels: Recent[Hashable, Channels] = field(default_factory=lambda: Recent(8))
    cuts: Recent[Hashable, Cut] = field(default_factory=lambda: Recent(1))
    scores: Recent[Hashable, Mapping[str, ScoreMoments]] = field(default_factory=lambda: Recent(1))
    weights: Recent[Hashable, Mapping[str, float]] = field(default_factory=lambda: Recent(2))
    whole: Recent[Hashable, Proposals] = field(default_factory=lambda: Recent(8))
    layers: dict[Hashable, Proposals] = field(default_factory=dict)
    narrowed: Recent[Hashable, Proposals] = field(default_factory=lambda: Recent(4))
    timed: Recent[Hashable, Timed] = field(default_factory=lambda: Recent(2))
    rounded: dict[Hashable, float] = field(default_factory=dict)
    unfinished: list[MomentCache] = field(default_factory=list)

    def of_fewer_layers(self) -> Memo:
        """What holds where some layers are left alone too; the rest is computed anew."""
        return Memo(
            self.chains, scores=self.scores, weights=self.weights, layers=self.layers,
            rounded=self.rounded, unfinished=self.unfinished,
        )  # fmt: skip

    def clear(self) -> None:
        """Let go of all but the unfinished files."""
        for known in (
            self.pruners, self.channels, self.cuts, self.scores, self.weights, self.whole,
            self.layers, self.narrowed, self.timed, self.rounded, self.chains,
        ):  # fmt: skip
            known.clear()
