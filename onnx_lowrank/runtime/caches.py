"""The folder of what is kept between runs: measured times, and moments of unfinished runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import platformdirs

from onnx_lowrank.options import OptionGroup, option

__all__ = ["CacheOptions"]


@dataclass(frozen=True)
class CacheOptions(OptionGroup):
    """Where things are kept between runs."""

    title: ClassVar[str] = "cache"

    cache: str | os.PathLike[str] | None = option(
        None,
        "Folder where measured times are kept, and what an interrupted run goes on from; '' for "
        "none. By default the user's own.",
        metavar="FOLDER",
    )

    def folder(self, kind: str) -> Path | None:
        """The folder of one kind of thing; None where nothing is to be kept.

        Args:
            kind: ``latency`` or ``moments``.
        """
        if self.cache == "":
            return None
        if self.cache is None:
            return platformdirs.user_cache_path("onnx-lowrank", appauthor=False) / kind
        return Path(self.cache) / kind
