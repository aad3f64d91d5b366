"""Pictures: the curves of every layer as small multiples, and a sweep as quality against cost."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.atomic_files import atomic_write

__all__ = ["Line", "Mark", "check_picture", "draw_curves", "draw_sweep"]

_SUFFIXES = (".png", ".svg")
#: curves: inches of a panel, of the margins left, below and right, and of a line of the legend
_CURVE_PANEL, _LEFT, _BELOW, _RIGHT, _LINE = (3.0, 2.3), 0.85, 0.62, 0.15, 0.22
#: smallest error that a picture shows
_FLOOR = 1e-4
#: colours that colour-blind readers can tell apart (Okabe & Ito 2008), dashes and markers
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")

#: sweeps: inches of a panel, and of the margins left, below and above
_MARK_PANEL, _MARK_LEFT, _MARK_BELOW, _ABOVE = (3.6, 3.0), 0.8, 0.6, 0.5
#: least part of 1 that the axis of quality spans
_LEAST = 0.01
#: colours of the best models, of the others, and of the original, from the same set
_FRONT, _BEATEN, _ORIGINAL = "#0072B2", "#999999", "#D55E00"


@dataclass(frozen=True)
class Line:
    """The curve of one form of a method in one panel.

    Lines of one method share a colour, those of one form their dashes and markers as well.

    Attributes:
        method: name of the method.
        variant: which form of it; empty where there is one.
        points: MACs that are left (0 to 1) and the error at them.
    """

    method: str
    variant: str
    points: Sequence[tuple[float, float]]

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{self.method} {self.variant}".strip()


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


def check_picture(path: str | os.PathLike[str]) -> Path:
    """Refuse a picture that cannot be drawn, before any work is done for it.

    Raises:
        OptionError: the suffix is neither .png nor .svg, or matplotlib is missing.
    """
    target = Path(path)
    if target.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"{target}: pictures are {' or '.join(_SUFFIXES)}; name one of these")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            'pictures need matplotlib, which is not installed; pip install "onnx-lowrank[plot]"'
        ) from error
    return target


def draw_curves(
    path: str | os.PathLike[str],
    panels: Sequence[tuple[str, Sequence[Line]]],
    across: str,
    up: str,
) -> None:
    """Write a picture, PNG or SVG by the suffix; equal panels give equal bytes.

    Args:
        path: of the picture.
        panels: a title and lines for each; one line at the least.
        across: name of the shared axis of MACs, 0 to 1.
        up: name of the shared axis of errors, logarithmic.

    Raises:
        OptionError: another suffix, or matplotlib is missing.
        ModelError: the file cannot be written.
    """
    _write(path, lambda: _curve_figure(panels, across, up))


def draw_sweep(
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
    _write(path, lambda: _sweep_figure(panels, up, percent))


def _write(path: str | os.PathLike[str], make: Callable[[], Any]) -> None:
    """Write the figure that ``make`` returns; see :func:`draw_curves`."""
    target = check_picture(path)
    import matplotlib as mpl

    kind = target.suffix.lower()[1:]
    # text stays text, so that it can be searched
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "onnx-lowrank"}):
        figure = make()
        with atomic_write(target) as file:
            figure.savefig(
                file, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None
            )


def _curve_figure(panels: Sequence[tuple[str, Sequence[Line]]], across: str, up: str) -> Any:
    from matplotlib.figure import Figure

    styles = _styles([line for _, lines in panels for line in lines])
    count = len(panels)
    columns = min(max(math.ceil(math.sqrt(count)), 2), 8, count)
    rows = math.ceil(count / columns)
    width = max(_LEFT + columns * _CURVE_PANEL[0] + _RIGHT, 5.0)
    abreast = min(max(int(width // 2.1), 1), len(styles))
    above = 0.45 + _LINE * math.ceil(len(styles) / abreast)
    height = _BELOW + rows * _CURVE_PANEL[1] + above
    figure = Figure((width, height))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    handles = {}
    for axis, (title, lines) in zip(axes, panels, strict=False):
        axis.set_title(title, fontsize=8, parse_math=False)
        for line in lines:
            macs, errors = zip(*line.points, strict=True)
            shown = [max(e, _FLOOR / 10) for e in errors]  # a logarithm knows no zero
            (handles[line.label],) = axis.plot(macs, shown, **styles[line.label])
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
    least = min(e for _, lines in panels for line in lines for _, e in line.points)
    axes[0].set(yscale="log", xlim=(0, 1), ylim=(max(min(least, 0.1) / 1.5, _FLOOR), 1.2))
    for axis in axes[count:]:
        axis.remove()
    for axis in axes[max(count - columns, 0) : count]:
        axis.tick_params(labelbottom=True)  # the lowest of its column
    figure.subplots_adjust(
        _LEFT / width, _BELOW / height, 1 - _RIGHT / width, 1 - above / height, 0.1, 0.28
    )
    figure.supxlabel(across, fontsize=10, y=0.12 / height)
    figure.supylabel(up, fontsize=10, x=0.1 / width)
    figure.legend(
        [handles[label] for label in styles],
        list(styles),
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - 0.05 / height),
        ncols=abreast,
        fontsize=9,
        frameon=False,
    )
    return figure


def _styles(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """A colour for each method, dashes and a marker for each of its variants; by label."""
    variants: dict[str, dict[str, str]] = {}
    for line in sorted(lines, key=lambda line: line.label):
        variants.setdefault(line.method, {})[line.variant] = line.label
    return {
        label: {
            "color": _COLOURS[i % len(_COLOURS)],
            "linestyle": _DASHES[k % len(_DASHES)],
            "marker": _MARKERS[k % len(_MARKERS)],
            "markersize": 3,
            "linewidth": 1.2,
        }
        for i, labels in enumerate(variants.values())
        for k, label in enumerate(labels.values())
    }


def _sweep_figure(panels: Sequence[tuple[str, Sequence[Mark]]], up: str, percent: bool) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    width = _MARK_LEFT + len(panels) * _MARK_PANEL[0] + _RIGHT
    height = _MARK_BELOW + _MARK_PANEL[1] + _ABOVE
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
        _MARK_LEFT / width, _MARK_BELOW / height, 1 - _RIGHT / width, 1 - _ABOVE / height, 0.08
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
