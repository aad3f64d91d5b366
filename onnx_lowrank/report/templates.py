"""Templates of pages, and how numbers stand in them."""

from __future__ import annotations

import math
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from onnx_lowrank.report.wording import means

__all__ = ["count", "ms", "number", "percent", "template"]


@cache
def template(name: str) -> Template:
    """The template of a page; what is put into it cannot break it.

    Args:
        name: file in this folder.
    """
    environment = Environment(
        loader=PackageLoader("onnx_lowrank.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "percent": percent, "number": number, "ms": ms}
    environment.filters["means"] = means
    return environment.get_template(name)


def count(value: float) -> str:
    """A number of things in three digits, with a unit."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def percent(value: float | None) -> str:
    """A fraction in percent; empty where it is not known."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    """A number in four digits; empty where it is not known."""
    return "" if value is None else f"{value:.4g}"


def ms(value: float | None) -> str:
    """Milliseconds; empty where they are not known."""
    return "" if value is None else f"{value:.3g} ms"
