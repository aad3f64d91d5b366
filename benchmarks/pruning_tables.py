"""Tables and a picture of what ``benchmarks.pruning`` measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["HEADER", "Row", "line", "picture"]

Row = Mapping[str, Any]

HEADER = (
    "model", "target", "way", "samples", "MACs left", "parameters left", "error", "change",
    "answers that differ", "batch 1", "batch 16", "seconds",
)  # fmt: skip

#: per cent
_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)

#: what the picture shows of part ``chains``, with the looks of each line
_LINES = {
    "obs parallel, solve, refit": ("#0072B2", "-", "o"),
    "obs bottom_up, solve, refit": ("#56B4E9", "-", "s"),
    "obs top_down, solve, refit": ("#009E73", "-", "^"),
    "obs parallel, solve": ("#0072B2", "--", "o"),
    "obs parallel, as they are": ("#0072B2", ":", "o"),
    "lasso, solve, refit": ("#CC79A7", "-", "D"),
    "energy, solve, refit": ("#E69F00", "-", "v"),
    "l2, solve, refit": ("#D55E00", "-", "P"),
    "l2, as they are": ("#D55E00", ":", "P"),
    "random, solve, refit": ("#000000", "-", "x"),
    "random, as they are": ("#000000", ":", "x"),
}


def line(row: Row) -> str:
    """One row of the table."""
    start = [row["model"], row["target"], row["name"], _samples(row)]
    if "refused" in row:
        return f"| {' | '.join([*start, row['refused'].splitlines()[0], *[''] * 7])} |"
    before, after = (100 * row[k] / row["tested"] for k in ("wrong_before", "wrong"))
    speed = row.get("speedup", {})
    cells = [
        *start,
        f"{row['macs']:.3f}",
        f"{row['params']:.3f}",
        f"{before:.2f} -> {after:.2f} %",
        f"{after - before:+.2f}",
        f"{100 * row['differ'] / row['tested']:.2f} %",
        *(f"{speed[b]:.2f}x" if b in speed else "" for b in ("batch 1", "batch 16")),
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def picture(path: Path, rows: Sequence[Row]) -> None:
    """Error over parameters left, a panel for each net, a line for each way; PNG or SVG."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    nets = list(dict.fromkeys(row["model"] for row in rows))
    rcParams["svg.hashsalt"] = "pruning"
    rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(3.6 * len(nets), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(nets), squeeze=False)[0]
    for panel, net in zip(panels, nets, strict=True):
        mine = [r for r in rows if r["model"] == net and "refused" not in r]
        for name, (colour, dash, marker) in _LINES.items():
            points = _points(r for r in mine if r["name"] == name)
            if points:
                panel.plot(
                    *zip(*points, strict=True), color=colour, linestyle=dash, marker=marker,
                    markersize=4, linewidth=1.2, label=name,
                )  # fmt: skip
        panel.set_title(net, fontsize=9)
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(FixedLocator(_TICKS))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_xlabel("parameters left", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("error, %", fontsize=8)
    handles = {h.get_label(): h for panel in panels for h in panel.get_lines()}
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=3, fontsize=7
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def _samples(row: Row) -> str:
    """Their number, and which draw of them where there are others."""
    draw = f", draw {row['seed']}" if row.get("seed") else ""
    return f"{row['samples'] or 'all'}{draw}"


def _points(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """Parameters left and per cent wrong, at least half a sample: the axis has no zero."""
    return sorted((r["params"], max(100 * r["wrong"], 50) / r["tested"]) for r in rows)
