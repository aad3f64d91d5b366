"""A sweep as a picture: quality against each cost, a panel for each, the best of all joined."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx_lowrank.report.curve_plot import write_figure

__all__ = ["Mark", "draw"]

#: inches of a panel, of the margins left, below, right and above
_PANEL, _LEFT, _BELOW, _RIGHT, _ABOVE = (3.6, 3.0), 0.8, 0.6, 0.15, 0.5
#: least part of 1 that the axis of quality spans
_LEAST = 0.01
#: colours that the colour-blind can tell apart (Okabe & Ito 2008)
_FRONT, _BEATEN, _ORIGINAL = "#0072B2", "#999999", "#D55E00"


@dataclass(frozen=True)
class Mark:
    """A model in a panel.

    Attributes:
        label: short.
        cost: part of the original's.
        quality: on the axis that all panels share.
        front: whether none is cheaper and better.
        original: whether it is the original itself.
    """

    label: str
    cost: float
    quality: float
    front: bool
    original: bool = False


def draw(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, Sequence[Mark]]],
    up: str,
    percent: bool = True,
) -> None:
    """Write a picture, PNG or SVG by the suffix; equal panels give equal bytes.

    Args:
        path: of the picture.
        panels: what is left of the original, and the models.
        up: name of the axis of quality.
        percent: whether quality is a part of 1.

    Raises:
        OptionError: another suffix, or matplotlib is missing.
        ModelError: the file cannot be written.
    """
    write_figure(path, lambda: _figure(panels, up, percent))


def _figure(panels: Sequence[tuple[str, Sequence[Mark]]], up: str, percent: bool) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    width = _LEFT + len(panels) * _PANEL[0] + _RIGHT
    height = _BELOW + _PANEL[1] + _ABOVE
    figure = Figure((width, height))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False).flatten()
    looks: dict[str, dict[str, Any]] = {
        "the best for their cost": {"color": _FRONT, "marker": "o", "linestyle": "-"},
        "others": {"color": _BEATEN, "marker": "o", "linestyle": "", "markerfacecolor": "none"},
        "original": {"color": _ORIGINAL, "marker": "*", "linestyle": "", "markersize": 11},
    }
    handles: dict[str, Any] = {}
    for axis, (across, marks) in zip(axes, panels, strict=True):
        front = sorted((m for m in marks if m.front), key=lambda m: m.cost)
        kinds = (
            front,
            [m for m in marks if not m.front and not m.original],
            [m for m in marks if m.original],
        )
        for (label, look), shown in zip(looks.items(), kinds, strict=True):
            if shown:
                points = [m.cost for m in shown], [m.quality for m in shown]
                (handles[label],) = axis.plot(
                    *points, **{"markersize": 4, "linewidth": 1.2, **look}
                )
        for m in front:
            if not m.original:
                axis.annotate(
                    m.label, (m.cost, m.quality), xytext=(4, -9), textcoords="offset points",
                    fontsize=7, parse_math=False,
                )  # fmt: skip
        most = max([1.0, *(m.cost for m in marks)])
        axis.set(xlim=(0, 1.15 * most), xlabel=across)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel(up)
    heights = [m.quality for _, marks in panels for m in marks]
    middle, spread = (max(heights) + min(heights)) / 2, max(heights) - min(heights)
    # what a few samples make is not blown up
    half = 0.6 * max(spread, _LEAST if percent else 1.0)
    axes[0].set_ylim(middle - half, middle + half)
    if percent:
        axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    figure.subplots_adjust(
        _LEFT / width, _BELOW / height, 1 - _RIGHT / width, 1 - _ABOVE / height, 0.08
    )
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.05 / height),
        ncols=len(handles),
        fontsize=9,
        frameon=False,
    )
    return figure
