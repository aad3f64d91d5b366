"""A sweep as one HTML page, made from its JSON, with its front as a picture."""

from __future__ import annotations

from onnx_lowrank.report.charts import Dot, scatter
from onnx_lowrank.report.sweep import Sweep
from onnx_lowrank.report.templates import template

__all__ = ["sweep_page"]


def sweep_page(found: Sweep, command: str = "") -> str:
    """The page of a sweep.

    Args:
        found: its points.
        command: as it was given; empty where there was none.
    """
    up, fraction = found.axis
    charts = [
        scatter(
            f"chart{number}",
            f"{up} against {name}",
            name,
            up,
            [Dot(m.label, m.cost, m.quality, m.front, m.original) for m in marks],
            fraction,
        )
        for number, (name, marks) in enumerate(found.panels(), 1)
    ]
    return template("sweep.html").render(found.to_dict(command), charts=charts)
