"""Small multiples: a panel for each layer, a line for each form of a method, one legend."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import OptionError
from onnx_lowrank.modelfile.model import atomic_write

__all__ = ["Line", "check_picture", "draw", "write_figure"]

_SUFFIXES = (".png", ".svg")
#: inches of a panel, of the margins left, below and right, of a line of the legend
_PANEL, _LEFT, _BELOW, _RIGHT, _LINE = (3.0, 2.3), 0.85, 0.62, 0.15, 0.22
#: smallest error that a picture shows
_FLOOR = 1e-4
#: colours that the colour-blind can tell apart (Okabe & Ito 2008), dashes and markers
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
_DASHES, _MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")


@dataclass(frozen=True)
class Line:
    """One form of a method in one panel, ``points`` of (MACs left, error).

    Lines of one method share a colour, those of one form all of their looks.
    """

    method: str
    variant: str
    points: Sequence[tuple[float, float]]

    @property
    def label(self) -> str:
        """What the legend says."""
        return f"{self.method} {self.variant}".strip()


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


def draw(
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
    write_figure(path, lambda: _figure(panels, across, up))


def write_figure(path: str | os.PathLike[str], make: Callable[[], Any]) -> None:
    """Write the figure that ``make`` returns; see :func:`draw`."""
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


def _figure(panels: Sequence[tuple[str, Sequence[Line]]], across: str, up: str) -> Any:
    from matplotlib.figure import Figure

    styles = _styles([line for _, lines in panels for line in lines])
    count = len(panels)
    columns = min(max(math.ceil(math.sqrt(count)), 2), 8, count)
    rows = math.ceil(count / columns)
    width = max(_LEFT + columns * _PANEL[0] + _RIGHT, 5.0)
    abreast = min(max(int(width // 2.1), 1), len(styles))
    above = 0.45 + _LINE * math.ceil(len(styles) / abreast)
    height = _BELOW + rows * _PANEL[1] + above
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
