"""A report as one HTML page: no network, readable on a screen, in the dark, and in print.

The page says what the JSON of the same report says and nothing else; it is made from that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from onnx_lowrank.report.charts import Bar, bars
from onnx_lowrank.report.templates import count, ms, percent, template

__all__ = ["page"]

Data = Mapping[str, Any]

#: layers that a chart shows, those of the most MACs
_LAYERS = 24


def page(data: Data) -> str:
    """The page of a report.

    Args:
        data: what :meth:`Report.to_dict` or :meth:`Check.to_dict` returned.
    """
    return template("page.html").render(data, charts=_charts(data), rows=_rows(data))


def _rows(data: Data) -> list[tuple[str, str, str, str]]:
    """What the model was, is, and what is left of it."""
    before, after = data["model"]["before"], data["model"]["after"]
    names = (("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes"))
    found = [
        (label, f"{before[key]:,}", f"{after[key]:,}", _left(before[key], after[key]))
        for key, label in names
    ]
    found += [
        (
            f"time, batch {p['batch']}",
            ms(p["reference_ms"]),
            ms(p["new_ms"]),
            _left(p["reference_ms"], p["new_ms"]),
        )
        for p in data["latency"]
    ]
    accuracy = data["accuracy"]
    if accuracy is not None:
        points = f"{0.0 - 100 * accuracy['drop']:+.2f} points"
        old, new = percent(accuracy["reference"]), percent(accuracy["new"])
        found.append((f"top-1 of {accuracy['samples']}", old, new, points))
    return found


def _charts(data: Data) -> dict[str, Markup]:
    return {
        "left": bars("left", "What is left of the original", _of_model(data), 1.0),
        "kept": bars(
            "kept", "What stays of the answers, with 95 % intervals", _of_outputs(data), 1
        ),
        "latency": bars(
            "latency", "Median time, and what 95 % of the runs stay below", _of_times(data)
        ),
        "layers": bars("layers", "MACs of layers before and after", _of_layers(data["layers"])),
        "stages": bars("stages", "Bytes of each stage", _of_stages(data["stages"]), 1.0),
    }


def _of_model(data: Data) -> list[Bar]:
    before, after = data["model"]["before"], data["model"]["after"]
    found = [
        Bar(label, after[key] / before[key], _left(before[key], after[key]), 1.0)
        for key, label in (("macs", "MACs"), ("params", "parameters"), ("bytes", "bytes"))
        if before[key]
    ]
    times = [(p["batch"], p["new_ms"] / p["reference_ms"]) for p in data["latency"]]
    return found + [Bar(f"time, batch {b}", part, f"{part:.3f}", 1.0) for b, part in times]


def _of_outputs(data: Data) -> list[Bar]:
    validation = data["validation"]
    found = []
    for judged in validation["judged"] if validation else ():
        value, low, high = (v if v is None else min(max(v, 0.0), 1.0) for v in judged["kept"])
        if value is not None:
            span = None if low is None or high is None else (low, high)
            found.append(Bar(judged["part"], value, percent(value), span=span))
    return found


def _of_times(data: Data) -> list[Bar]:
    return [
        Bar(
            f"{who}, batch {p['batch']}",
            p[f"{key}_median_ms"],
            f"{ms(p[f'{key}_median_ms'])}, {ms(p[f'{key}_p95_ms'])}",
            span=(p[f"{key}_median_ms"], p[f"{key}_p95_ms"]),
        )
        for p in data["latency"]
        for who, key in (("original", "reference"), ("new", "new"))
    ]


def _of_layers(layers: Sequence[Data]) -> list[Bar]:
    largest = sorted(layers, key=lambda layer: -layer["macs_before"])[:_LAYERS]
    shown = [layer for layer in layers if layer in largest and layer["macs_before"]]
    return [
        Bar(
            layer["name"],
            layer["macs_after"],
            f"{count(layer['macs_before'])} to {count(layer['macs_after'])}",
            layer["macs_before"],
        )
        for layer in shown
    ]


def _of_stages(stages: Sequence[Data]) -> list[Bar]:
    if not stages:
        return []
    whole = stages[0]["bytes"]
    return [Bar(s["name"], s["bytes"] / whole, f"{s['bytes'] / whole:.3f}", 1.0) for s in stages]


def _left(before: float, after: float) -> str:
    return f"{after / before:.3f}" if before else ""
