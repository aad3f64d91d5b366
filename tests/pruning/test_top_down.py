from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.passes import PruneChannels
from tests import fixtures_models as fm


def test_choosing_by_the_pruned_prefix() -> None:
    """Other channels than by the original's data, as many of them, and no worse after the refit."""
    kept = {}
    for chain in ("parallel", "top_down"):
        result = fm.quick_compress(
            fm.digits("vgg"), calib=fm.DIGITS, target="macs=0.4", samples=300,
            passes=["fold_batchnorm", PruneChannels(chain=chain)],
        )  # fmt: skip
        kept[chain] = {g.name: g.kept for g in result.plan.groups if g.kept}
        assert result.report.validation.outputs[0].relative_error < 0.2
    sizes = [{name: len(k) for name, k in found.items()} for found in kept.values()]
    assert sizes[0] == sizes[1]
    assert kept["parallel"] != kept["top_down"]


def test_the_first_group_sees_the_original() -> None:
    """Nothing is pruned before it, so that it is chosen alike (swaps aside)."""
    found = []
    for chain in ("top_down", "bottom_up"):
        result = fm.quick_compress(
            fm.digits("mlp"), calib=fm.DIGITS, target="params=0.5", samples=300,
            passes=[PruneChannels(chain=chain)], repair="none",
        )  # fmt: skip
        found.append({g.name: g.kept for g in result.plan.groups if g.kept})
    assert found[0].keys() == found[1].keys()
    assert found[0] != found[1]


@pytest.mark.parametrize("chain", ["top_down", "bottom_up"])
def test_without_data(chain: str) -> None:
    result = fm.quick_compress(
        fm.digits("mlp"), calib=None, target="params=0.5", passes=[PruneChannels(chain=chain)]
    )
    assert result.report.after.parameters <= 0.5 * result.report.before.parameters
    assert np.isfinite(result.report.validation.outputs[0].relative_error)
