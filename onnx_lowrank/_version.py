"""The version, from the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("onnx-lowrank")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0+unknown"
