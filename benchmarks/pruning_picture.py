"""A picture of what the benchmark of pruning measured: error over parameters left."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.rows import MEASURED, Row

__all__ = ["picture"]

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


def picture(path: Path, rows: Sequence[Row]) -> None:
    """Error over parameters left, a panel for each net, a line for each way; PNG or SVG."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    nets = list(dict.fromkeys(row.model for row in rows))
    rcParams["svg.hashsalt"] = "pruning"
    rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(3.6 * len(nets), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(nets), squeeze=False)[0]
    for panel, net in zip(panels, nets, strict=True):
        mine = [r for r in rows if r.model == net and r.status == MEASURED]
        for name, (colour, dash, marker) in _LINES.items():
            points = _points(r for r in mine if r.options["way"] == name)
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


def _points(rows: Iterable[Row]) -> list[tuple[float, float]]:
    """Parameters left and per cent wrong, at least half a sample: the axis has no zero."""
    return sorted(
        (r.figures["params"] or 0.0, max(100 * (r.figures["wrong"] or 0.0), 50) / r.samples["test"])
        for r in rows
    )
