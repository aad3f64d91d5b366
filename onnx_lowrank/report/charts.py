"""Charts as inline SVG, in the colours of their page, which say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "Dot", "bars", "scatter"]

#: pixels: width of a chart, of its labels and of the texts behind bars, and height of a row
_WIDTH, _LABEL, _TEXT, _ROW = 720, 210, 150, 26
#: letters of a label that fit
_LETTERS = 30
#: pixels: width and height of a scatter chart, and of its margins left and below
_ACROSS, _UP, _LEFT, _BELOW = 360, 280, 58, 40
#: least part of 1 that the axis of a fraction spans
_LEAST = 0.01


@dataclass(frozen=True)
class Bar:
    """One row of a chart.

    Attributes:
        label: what it is of.
        value: length of the bar, 0 or more.
        text: the value for people.
        ghost: length of a paler bar behind it, as of the original; None for none.
        span: ends of an interval around the value; None for none.
    """

    label: str
    value: float
    text: str
    ghost: float | None = None
    span: tuple[float, float] | None = None


def bars(name: str, title: str, rows: Sequence[Bar], most: float | None = None) -> Markup:
    """A chart of horizontal bars from zero on; empty without rows.

    Args:
        name: prefix of the identifiers in it, one for each chart of a page.
        title: what it shows.
        rows: from top to bottom.
        most: value at its right end; None for the largest there is.
    """
    if not rows:
        return Markup("")
    ends = [v for r in rows for v in (r.value, r.ghost or 0.0, *(r.span or ())) if math.isfinite(v)]
    scale = (_WIDTH - _LABEL - _TEXT) / (most or max([*ends, 1e-12]))
    described = "; ".join(f"{r.label}: {r.text}" for r in rows)
    height = _ROW * len(rows) + 8
    parts = [
        Markup(
            '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
            '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>'
        ).format(_WIDTH, height, name, name, name, title, name, described)
    ]
    for number, row in enumerate(rows):
        parts.append(_row(row, 4 + number * _ROW, scale))
    parts.append(
        Markup('<line class="axis" x1="{}" y1="0" x2="{}" y2="{}"/></svg>').format(
            _LABEL, _LABEL, height
        )
    )
    return Markup("").join(parts)


def _row(row: Bar, top: int, scale: float) -> Markup:
    middle, found = top + _ROW // 2, []
    label = row.label if len(row.label) <= _LETTERS else f"…{row.label[1 - _LETTERS :]}"
    found.append(
        Markup('<text class="label" x="{}" y="{}">{}</text>').format(
            _LABEL - 8, middle + 4, escape(label)
        )
    )
    end = _LABEL
    for kind, value in (("ghost", row.ghost), ("bar", row.value)):
        if value is not None and math.isfinite(value):
            width = round(max(value, 0.0) * scale, 1)
            end = max(end, math.ceil(_LABEL + width))
            found.append(
                Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                    kind, _LABEL, top + 4, width, _ROW - 8
                )
            )
    if row.span is not None and all(map(math.isfinite, row.span)):
        low, high = (round(_LABEL + max(v, 0.0) * scale, 1) for v in row.span)
        end = max(end, math.ceil(high))
        found.append(
            Markup('<path class="span" d="M{0} {1}v8m0 -4H{2}m0 -4v8"/>').format(
                low, middle - 4, high
            )
        )
    found.append(
        Markup('<text class="value" x="{}" y="{}">{}</text>').format(end + 6, middle + 4, row.text)
    )
    return Markup("").join(found)


@dataclass(frozen=True)
class Dot:
    """One point of a scatter chart.

    Attributes:
        label: what it is of.
        across: cost, 0 or more.
        up: quality.
        front: whether no other is cheaper and better.
        original: whether it is what the others are measured by.
    """

    label: str
    across: float
    up: float
    front: bool
    original: bool = False


def scatter(
    name: str, title: str, across: str, up: str, dots: Sequence[Dot], fraction: bool
) -> Markup:
    """A chart of quality against cost; those on the front are joined. Empty without points.

    Args:
        name: prefix of the identifiers in it, one for each chart of a page.
        title: what it shows.
        across: what the horizontal axis is, from 0 on.
        up: what the vertical axis is.
        dots: the points.
        fraction: whether quality is told in percent.
    """
    if not dots:
        return Markup("")
    right = max(1.0, *(d.across for d in dots))
    low, high = min(d.up for d in dots), max(d.up for d in dots)
    margin = max(0.08 * (high - low), _LEAST / 2 if fraction else 0.5)
    low, high = low - margin, high + margin

    def place(dot: Dot) -> tuple[float, float]:
        x = _LEFT + dot.across / right * (_ACROSS - _LEFT - 20)
        y = (_UP - _BELOW) * (high - dot.up) / (high - low)
        return round(x, 1), round(y, 1)

    def said(value: float) -> str:
        return f"{100 * value:.1f} %" if fraction else f"{value:.1f}"

    described = "; ".join(f"{d.label}: {d.across:.3f}, {said(d.up)}" for d in dots)
    parts = [
        Markup(
            '<svg class="chart scatter" viewBox="0 0 {0} {1}" role="img" '
            'aria-labelledby="{2}-t {2}-d"><title id="{2}-t">{3}</title>'
            '<desc id="{2}-d">{4}</desc>'
        ).format(_ACROSS, _UP, name, title, described),
        Markup('<path class="axis" fill="none" d="M{0} 0V{1}H{2}"/>').format(
            _LEFT, _UP - _BELOW, _ACROSS
        ),
    ]
    for part in (0.0, 0.5, 1.0):
        x, _ = place(Dot("", part * right, high, False))
        y = round((_UP - _BELOW) * (1 - part), 1)
        value = low + part * (high - low)
        parts.append(
            Markup(
                '<text class="tick" text-anchor="middle" x="{}" y="{}">{}</text>'
                '<text class="label" x="{}" y="{}">{}</text>'
            ).format(
                x, _UP - _BELOW + 15, f"{part * right:.2g}", _LEFT - 6, max(y, 10), said(value)
            )
        )
    parts.append(
        Markup('<text text-anchor="middle" x="{}" y="{}">{}</text>').format(
            (_LEFT + _ACROSS) / 2, _UP - 6, f"{across}; up: {up}"
        )
    )
    front = sorted((place(d) for d in dots if d.front), key=lambda xy: xy[0])
    line = "L".join(f"{x} {y}" for x, y in front)
    parts.append(Markup('<path class="front" fill="none" d="M{}"/>').format(line))
    for dot in dots:
        x, y = place(dot)
        kind = "original" if dot.original else "front" if dot.front else "beaten"
        parts.append(
            Markup('<circle class="{}" cx="{}" cy="{}" r="4"><title>{}</title></circle>').format(
                kind, x, y, f"{dot.label}: {dot.across:.3f}, {said(dot.up)}"
            )
        )
    return Markup("").join([*parts, Markup("</svg>")])
