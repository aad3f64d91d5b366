"""Ways to compress, from what other tools do to what this one does."""

from __future__ import annotations

from typing import Any

__all__ = ["METHODS"]

METHODS: dict[str, dict[str, Any]] = {
    "weight space, uniform": {
        "passes": "fold_batchnorm,svd{metric=identity},spatial_svd{metric=identity}",
        "ranks": "ratio",
        "repair": False,
    },
    "response metric, uniform": {
        "passes": "fold_batchnorm,svd,spatial_svd",
        "ranks": "ratio",
        "repair": False,
    },
    "planned": {"repair": False},
    "planned, refit": {},
}
