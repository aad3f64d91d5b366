from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.engine.api import Result
from onnx_lowrank.passes import PruneChannels
from tests import fixtures_models as fm


def pruned(net: str, chain: str, target: str) -> Result:
    return fm.quick_compress(
        fm.digits(net), calib=fm.DIGITS, target=target, samples=300,
        passes=["fold_batchnorm", PruneChannels(chain=chain)],
    )  # fmt: skip


def kept(result: Result) -> dict[str, tuple[int, ...]]:
    return {g.name: tuple(g.kept) for g in result.plan.groups if g.kept}


@pytest.mark.parametrize(
    ("net", "target"),
    [
        pytest.param("mlp", "params=0.5", marks=pytest.mark.full),
        pytest.param("vgg", "macs=0.4", marks=pytest.mark.slow),
    ],
)
def test_choosing_by_the_pruned_prefix(net: str, target: str) -> None:
    """Other channels in either order than by the original's data, and as many of them."""
    results = {c: pruned(net, c, target) for c in ("parallel", "top_down", "bottom_up")}
    found = [kept(r) for r in results.values()]
    sizes = [{name: len(k) for name, k in groups.items()} for groups in found]
    assert sizes[0] == sizes[1] == sizes[2]
    assert found[0] != found[1] != found[2] != found[0]
    for result in results.values():
        assert result.report.validation.outputs[0].relative_error < 0.2


@pytest.mark.parametrize("chain", ["top_down", "bottom_up"])
def test_without_data(chain: str) -> None:
    result = fm.quick_compress(
        fm.digits("mlp"), calib=None, target="params=0.5", passes=[PruneChannels(chain=chain)]
    )
    assert result.report.after.parameters <= 0.5 * result.report.before.parameters
    assert np.isfinite(result.report.validation.outputs[0].relative_error)
