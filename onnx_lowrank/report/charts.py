"""Bar charts as inline SVG, in the colours of their page, which say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

__all__ = ["Bar", "bars"]

#: pixels: width of a chart, of its labels and of the texts behind bars, and height of a row
_WIDTH, _LABEL, _TEXT, _ROW = 720, 210, 150, 26
#: letters of a label that fit
_LETTERS = 30


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
