"""What the benchmark of pruning measures: parts, each a list of cells."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from benchmarks.rows import Cell
from onnx_lowrank.engine.option_groups import DEFAULT_PASSES

__all__ = ["MODELS", "PARTS", "TIMED", "pruning_cell"]

#: pruning with nothing after it
_ALONE = "fold_batchnorm,prune_channels"

#: and with the factorizations that are quick to plan
_TOGETHER = f"{_ALONE},svd,spatial_svd,channel_svd"

_FACTORIZATION = "fold_batchnorm,svd,spatial_svd,channel_svd"

_DENSE, _CONVOLUTIONS = "mnist_mlp_300_100", "mnist_lenet5_caffe"

#: nets of the parts that are timed
_NETS = (
    "cifar10_resnet20",
    "cifar10_vgg_s",
    "cifar10_resnet56",
    "imagenet_squeezenet11",
    "imagenet_mobilenetv2_1.0",
)

MODELS = (_DENSE, _CONVOLUTIONS, *_NETS)

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


def pruning_cell(
    part: str,
    net: str,
    target: str,
    way: str,
    passes: str,
    *,
    repair: str = "chain",
    samples: int | None = None,
    seed: int = 0,
) -> Cell:
    """One model compressed in one way to one budget.

    Args:
        part: of the benchmark.
        net: name of the model.
        target: the budget, ``params=0.44``.
        way: name of the way.
        passes: of :func:`onnx_lowrank.compress`; empty where another tool prunes.
        repair: of :func:`onnx_lowrank.compress`.
        samples: calibration samples; None for all there are.
        seed: random seed of their draw.
    """
    options = {
        "part": part, "target": target, "way": way, "passes": passes, "repair": repair,
        "samples": samples, "seed": seed,
    }  # fmt: skip
    return Cell("pruning", net, options)


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
            "pruning": _ALONE,
            "svd": "fold_batchnorm,svd",
            "pruning + svd": f"{_ALONE},svd",
        },
        _CONVOLUTIONS: {
            "pruning": _ALONE,
            "factorization": _FACTORIZATION,
            "pruning + svd": f"{_ALONE},svd",
            "pruning + factorization": _TOGETHER,
        },
    }
    ratios = {
        _DENSE: (0.44, 0.35, 0.25, 0.18, 0.12),
        _CONVOLUTIONS: (0.16, 0.12, 0.09, 0.06, 0.04),
    }

    def cell(net: str, ratio: float, way: str, samples: int, seed: int = 0) -> Cell:
        return pruning_cell(
            "mnist", net, f"params={ratio}", way, ways[net][way], samples=samples, seed=seed
        )

    for net, known in ways.items():
        for ratio, way in product(ratios[net], known):
            yield cell(net, ratio, way, 10_000)
    for net, way, ratio in (
        (_DENSE, "pruning", 0.35),
        (_DENSE, "pruning + svd", 0.18),
        (_CONVOLUTIONS, "pruning", 0.16),
        (_CONVOLUTIONS, "pruning + factorization", 0.06),
    ):
        for samples in (500, 1000, 2000):
            yield cell(net, ratio, way, samples)
    for net, way, ratio in _GOALS:
        for seed in range(1, _DRAWS):
            yield cell(net, ratio, way, 10_000, seed)


def _chain_cells() -> Iterator[Cell]:
    ratios = {
        _DENSE: ("params=0.35", "params=0.2", "params=0.1"),
        _CONVOLUTIONS: ("params=0.2", "params=0.1", "params=0.05"),
        "cifar10_resnet20": ("params=0.7", "params=0.5", "params=0.85"),
    }
    for net, targets in ratios.items():
        samples = 500 if net.startswith("cifar10") else 1000
        for target, (way, (passes, repair)) in product(targets, _strategies().items()):
            yield pruning_cell("chains", net, target, way, passes, repair=repair, samples=samples)


def _net_cells() -> Iterator[Cell]:
    ways = {
        "pruning": _ALONE,
        "pruning, gather=false": "fold_batchnorm,prune_channels{gather=False}",
        "pruning + factorization": _TOGETHER,
        "factorization": _FACTORIZATION,
        "default passes": DEFAULT_PASSES,
    }
    for net, ratio, (way, passes) in product(_NETS, (0.7, 0.5), ways.items()):
        if "gather" not in way or "resnet" in net:
            yield pruning_cell("cifar", net, f"macs={ratio}", way, passes, samples=500)


def _rival_cells() -> Iterator[Cell]:
    ways = {
        "onnxsim L2": "",
        "onnxsim Wanda": "",
        "ours, as L2": "fold_batchnorm,prune_channels{method=l2,solve=False,gather=False}",
    }
    for net, ratio, (way, passes) in product(_NETS, (0.7, 0.5), ways.items()):
        target = f"macs={ratio}"
        yield pruning_cell("rivals", net, target, way, passes, repair="none", samples=500)


PARTS = {
    "mnist": _mnist_cells,
    "chains": _chain_cells,
    "cifar": _net_cells,
    "rivals": _rival_cells,
}

#: parts whose results are timed
TIMED = ("cifar", "rivals")
