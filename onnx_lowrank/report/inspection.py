"""What is in a model, as tables and JSON."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from os.path import commonprefix
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnx_lowrank.analysis.cost import Cost
from onnx_lowrank.report.alike import alike, kind_of, pattern
from onnx_lowrank.report.report import short

__all__ = ["AttentionInfo", "Inspection", "LayerInfo"]

#: letters of a name in a table
_WIDTH = 80


@dataclass(frozen=True)
class LayerInfo:
    """One node with weights.

    Attributes:
        name: of the node, or of its output.
        op: operator.
        shape: of the weight, ``(N, C / groups, *kernel)``; empty where it was not read.
        groups: number of groups.
        macs: multiply-accumulates; None where they cannot be counted.
        params: elements of weight and bias.
        eligible: whether some pass can take it apart.
        reason: the passes that can, or why none can.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    groups: int
    macs: int | None
    params: int
    eligible: bool
    reason: str


@dataclass(frozen=True)
class AttentionInfo:
    """One block of attention.

    Attributes:
        name: of its softmax.
        heads: number of heads; 0 where they were not read.
        width: channels of a head.
        macs: multiply-accumulates of its two products, without its layers.
        layers: names of the layers around it.
        reason: why its queries and keys, or its values, cannot be narrowed; empty if they can.
    """

    name: str
    heads: int
    width: int
    macs: int
    layers: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Inspection:
    """A model's cost and layers.

    Attributes:
        cost: of the whole model, counted from the file.
        layers: nodes with weights, in topological order, those in subgraphs last.
        notes: what could not be counted, and the remedy.
        attention: blocks of attention, in topological order.
    """

    cost: Cost
    layers: tuple[LayerInfo, ...]
    notes: tuple[str, ...]
    attention: tuple[AttentionInfo, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as printed by ``--json``."""
        cost = self.cost
        return {
            "schema": 1,
            "model": cost.to_dict(),
            "layers": [asdict(layer) for layer in self.layers],
            "attention": [asdict(block) for block in self.attention],
            "notes": list(self.notes),
        }

    def print(self, console: Console, *, every: bool = False) -> None:
        """Tables of the layers and of blocks of attention, then the sums.

        Args:
            console: where to.
            every: one row for each layer. Otherwise layers that are alike, as those of the blocks
                of a transformer, share a row with their number and the sums of their costs.
        """
        console.print(self._layers(every))
        if self.attention:
            console.print(self._blocks(every))
        cost = self.cost
        console.print(
            f"{cost.macs:,} {cost.macs_label}, {cost.parameters:,} parameters, "
            f"{cost.bytes:,} bytes",
            highlight=False,
        )
        for note in self.notes:
            console.print(Text(f"note: {note}", style="yellow"))

    def _layers(self, every: bool) -> Table:
        """Rows of layers; where several share one, the first of several reasons has to do."""
        rows = [[la] for la in self.layers] if every else alike(self.layers, _kind_of_layer)
        table = _table("layer", ("number", "op", "weight", "groups", "MACs", "share", "parameters"))
        for column in ("op", "weight"):
            next(c for c in table.columns if c.header == column).justify = "left"
        table.add_column("passes, or why not", overflow="fold", style="dim")
        for row in rows:
            first = row[0]
            counted = [layer.macs for layer in row if layer.macs is not None]
            macs = sum(counted) if len(counted) == len(row) else None
            table.add_row(
                _named([layer.name for layer in row]),
                _number(row),
                first.op,
                "x".join(map(str, first.shape)),
                str(first.groups) if first.groups > 1 else "",
                "?" if macs is None else f"{macs:,}",
                "" if macs is None or not self.cost.macs else f"{macs / self.cost.macs:.1%}",
                f"{sum(layer.params for layer in row):,}",
                first.reason if every else first.reason.partition("; ")[0],
            )
        return table

    def _blocks(self, every: bool) -> Table:
        rows = [[b] for b in self.attention] if every else alike(self.attention, _kind_of_block)
        table = _table("attention", ("number", "heads", "width", "MACs of products"))
        table.add_column("layers, or why not", overflow="fold", style="dim")
        for row in rows:
            first = row[0]
            around = [pattern(names) for names in zip(*(b.layers for b in row), strict=True)]
            table.add_row(
                _named([block.name for block in row]),
                _number(row),
                str(first.heads or "?"),
                str(first.width or "?"),
                f"{sum(block.macs for block in row):,}",
                first.reason or ", ".join(_without_folder(around)),
            )
        return table


def _kind_of_layer(layer: LayerInfo) -> Hashable:
    """What layers of one row have in common: all but the numbers in their names."""
    return (kind_of(layer.name), *(v for k, v in asdict(layer).items() if k != "name"))


def _kind_of_block(block: AttentionInfo) -> Hashable:
    around = tuple(kind_of(name) for name in block.layers)
    return (kind_of(block.name), block.heads, block.width, block.macs, around, block.reason)


def _table(name: str, figures: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(name, overflow="fold")
    for column in figures:
        table.add_column(column, justify="right")
    return table


def _without_folder(names: Sequence[str]) -> list[str]:
    """Names without the path that all of them begin with: ``query/MatMul``."""
    letters = commonprefix(names) if len(names) > 1 else ""  # noqa: RUF071 - cut at the slash below
    common = letters.rpartition("/")[0]
    return [short(name.removeprefix(f"{common}/"), _WIDTH) for name in names]


def _named(names: Sequence[str]) -> Text:
    return Text(short(pattern(names), _WIDTH))


def _number(row: Sequence[object]) -> str:
    return str(len(row)) if len(row) > 1 else ""
