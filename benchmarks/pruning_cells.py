"""What ``benchmarks.pruning`` measures: parts, each a list of cells, and the data of MNIST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.models import MODELS, SHARED, Benchmark, Samples
from onnx_lowrank.engine.api import DEFAULT_PASSES

__all__ = ["ALONE", "NETS", "PARTS", "Cell", "cells"]

#: pruning with nothing after it
ALONE = "fold_batchnorm,prune_channels"

#: and with the factorizations that are quick to plan
TOGETHER = f"{ALONE},svd,spatial_svd,channel_svd"

_DENSE, _CONVOLUTIONS = "mnist_mlp_300_100", "mnist_lenet5_caffe"

#: what the nets of part ``cifar`` and ``rivals`` are
_NETS = (
    "cifar10_resnet20",
    "cifar10_vgg_s",
    "cifar10_resnet56",
    "imagenet_squeezenet11",
    "imagenet_mobilenetv2_1.0",
)


#: what is measured with several draws of the samples, and how many
_GOALS = (
    (_DENSE, "pruning", 0.44),
    (_DENSE, "pruning", 0.35),
    (_DENSE, "pruning + svd", 0.25),
    (_DENSE, "pruning + svd", 0.18),
    (_CONVOLUTIONS, "pruning", 0.16),
    (_CONVOLUTIONS, "pruning + factorization", 0.09),
    (_CONVOLUTIONS, "pruning + factorization", 0.06),
)
_DRAWS = 5


@dataclass(frozen=True)
class Cell:
    """One model compressed in one way to one budget.

    Attributes:
        part: of the benchmark.
        model: its name.
        target: the budget, ``params=0.44``.
        name: of the way.
        passes: of :func:`onnx_lowrank.compress`; empty where another tool prunes.
        repair: of :func:`onnx_lowrank.compress`.
        samples: to calibrate on; None for all there are.
        seed: of their choice.
    """

    part: str
    model: str
    target: str
    name: str
    passes: str
    repair: str = "chain"
    samples: int | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """What tells it from other cells."""
        return self.key_of(asdict(self))

    @staticmethod
    def key_of(row: Mapping[str, Any]) -> str:
        """The same of a row of results."""
        named = [row[k] for k in ("part", "model", "target", "name", "samples")]
        return "/".join(map(str, [*named, *([row["seed"]] if row.get("seed") else [])]))


def _mnist() -> Samples:
    def prepared(x: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        scaled = (x / 255.0 - 0.1307) / 0.3081
        return scaled.astype(np.float32)[:, None]

    with np.load(SHARED / "data" / "mnist.npz", allow_pickle=False) as z:
        drawn = np.random.default_rng(0).permutation(len(z["x_train"]))[:20_000]
        return {
            "input": prepared(z["x_train"][drawn]),
            "test.input": prepared(z["x_test"]),
            "test.labels": z["y_test"].astype(np.int64),
        }


NETS: dict[str, Benchmark] = {
    **{
        name: Benchmark(SHARED / "models" / f"{name}.onnx", _mnist, 10_000, ())
        for name in (_DENSE, _CONVOLUTIONS)
    },
    **{name: MODELS[name] for name in ("digits_mlp", *_NETS)},
}


def _strategies() -> dict[str, tuple[str, str]]:
    """Passes and repair of every way to choose and to mend, by name."""
    found = {}
    for chain, solve, repair in product(
        ("parallel", "bottom_up", "top_down"), (True, False), ("chain", "none")
    ):
        if not solve and chain != "parallel":
            continue
        mended = {(True, "chain"): "solve, refit", (True, "none"): "solve",
                  (False, "chain"): "refit", (False, "none"): "as they are"}  # fmt: skip
        passes = f"fold_batchnorm,prune_channels{{chain={chain},solve={solve}}}"
        found[f"obs {chain}, {mended[solve, repair]}"] = passes, repair
    for method, mend in product(("lasso", "energy", "l1", "l2", "random"), (True, False)):
        passes = f"fold_batchnorm,prune_channels{{method={method},solve={mend}}}"
        found[f"{method}, {'solve, refit' if mend else 'as they are'}"] = (
            passes,
            "chain" if mend else "none",
        )
    return found


def _mnist_cells() -> Iterator[Cell]:
    ways = {
        _DENSE: {
            "pruning": ALONE,
            "svd": "fold_batchnorm,svd",
            "pruning + svd": f"{ALONE},svd",
        },
        _CONVOLUTIONS: {
            "pruning": ALONE,
            "factorization": "fold_batchnorm,svd,spatial_svd,channel_svd",
            "pruning + svd": f"{ALONE},svd",
            "pruning + factorization": TOGETHER,
        },
    }
    ratios = {
        _DENSE: (0.44, 0.35, 0.25, 0.18, 0.12),
        _CONVOLUTIONS: (0.16, 0.12, 0.09, 0.06, 0.04),
    }
    for net, ratio in ((n, r) for n in ways for r in ratios[n]):
        for name, passes in ways[net].items():
            yield Cell("mnist", net, f"params={ratio}", name, passes, samples=10_000)
    few = (500, 1000, 2000)
    for net, name, ratio in (
        (_DENSE, "pruning", 0.35),
        (_DENSE, "pruning + svd", 0.18),
        (_CONVOLUTIONS, "pruning", 0.16),
        (_CONVOLUTIONS, "pruning + factorization", 0.06),
    ):
        for samples in few:
            yield Cell("mnist", net, f"params={ratio}", name, ways[net][name], samples=samples)
    for net, name, ratio in _GOALS:
        for seed in range(1, _DRAWS):
            target = f"params={ratio}"
            yield Cell("mnist", net, target, name, ways[net][name], samples=10_000, seed=seed)


def _chain_cells() -> Iterator[Cell]:
    ratios = {
        _DENSE: ("params=0.35", "params=0.2", "params=0.1"),
        _CONVOLUTIONS: ("params=0.2", "params=0.1", "params=0.05"),
        "cifar10_resnet20": ("params=0.7", "params=0.5", "params=0.85"),
    }
    for net, targets in ratios.items():
        samples = 500 if net.startswith("cifar10") else 1000
        for target, (name, (passes, repair)) in product(targets, _strategies().items()):
            yield Cell("chains", net, target, name, passes, repair, samples)


def _net_cells() -> Iterator[Cell]:
    for net, ratio in product(_NETS, (0.7, 0.5)):
        ways = {
            "pruning": ALONE,
            "pruning, gather=false": "fold_batchnorm,prune_channels{gather=False}",
            "pruning + factorization": TOGETHER,
            "factorization": "fold_batchnorm,svd,spatial_svd,channel_svd",
            "default passes": DEFAULT_PASSES,
        }
        for name, passes in ways.items():
            if "gather" not in name or "resnet" in net:
                yield Cell("cifar", net, f"macs={ratio}", name, passes, "chain", 500)


def _rival_cells() -> Iterator[Cell]:
    for net, ratio in product(_NETS, (0.7, 0.5)):
        stand_in = "fold_batchnorm,prune_channels{method=l2,solve=False,gather=False}"
        for name, passes in {
            "onnxsim L2": "",
            "onnxsim Wanda": "",
            "ours, as L2": stand_in,
        }.items():
            yield Cell("rivals", net, f"macs={ratio}", name, passes, "none", 500)


PARTS = {
    "mnist": _mnist_cells,
    "chains": _chain_cells,
    "cifar": _net_cells,
    "rivals": _rival_cells,
}


def cells(
    part: str, model: str, ways: Sequence[str] | None = None, targets: Sequence[str] | None = None
) -> list[Cell]:
    """Cells of a part that look at a model, of some ways or budgets only where these are named."""
    return [
        cell for cell in PARTS[part]()
        if cell.model == model
        and (ways is None or cell.name in ways)
        and (targets is None or cell.target in targets)
    ]  # fmt: skip
