"""The summary of a batch as one HTML page, made from its JSON and saying the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from onnx_lowrank.report.templates import template

__all__ = ["BATCH_SCHEMA", "batch_page"]

#: number of the form of summaries, as in ``batch.schema.json``
BATCH_SCHEMA = 1


def batch_page(data: Mapping[str, Any]) -> str:
    """The page of a summary.

    Args:
        data: what ``summary.json`` holds.
    """
    page = template("batch.html")
    return page.render(data, link=lambda name: quote(os.fsencode(name)))
