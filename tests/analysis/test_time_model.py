from __future__ import annotations

import numpy as np
import pytest

from onnx_lowrank.analysis.time_model import BLOCK, MOVED, workload
from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry, LinearGeometry
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep


def conv(kernel: tuple[int, ...], groups: int = 1) -> ConvGeometry:
    one = (1,) * len(kernel)
    return ConvGeometry(kernel, one, one, (0,) * (2 * len(kernel)), groups)


@pytest.mark.parametrize(
    ("outputs", "inputs", "groups", "wanted"),
    [
        (BLOCK, BLOCK, 1, BLOCK * BLOCK),
        (BLOCK + 1, BLOCK, 1, 2 * BLOCK * BLOCK),
        (BLOCK, BLOCK + 1, 1, 2 * BLOCK * BLOCK),
        (5, 3, 1, BLOCK * 3),  # colours are read unblocked
        (5, 4, 1, BLOCK * BLOCK),
        (6, 3, 2, 18),  # grouped convolutions run unblocked
    ],
)
def test_workload_pays_whole_blocks(outputs: int, inputs: int, groups: int, wanted: int) -> None:
    stage = Stage(np.zeros((outputs, inputs, 3, 1)), None, conv((3, 1), groups))
    shape = (2, inputs * groups, 6, 5)
    found = workload(Chain((stage,)), shape)
    assert found == wanted * 3 * 2 * 4 * 5
    assert found >= stage.macs(shape)


def test_workload_of_a_product_is_its_macs() -> None:
    stage = Stage(np.zeros((5, 3)), None, LinearGeometry())
    assert workload(Chain((stage,)), (2, 3)) == stage.macs((2, 3)) == 30


def test_a_depthwise_convolution_has_no_workload() -> None:
    stage = Stage(np.zeros((BLOCK, 1, 3, 3)), None, conv((3, 3), BLOCK))
    assert stage.macs((1, BLOCK, 5, 5)) > 0
    assert workload(Chain((stage,)), (1, BLOCK, 5, 5)) == 0


def test_channels_picked_out_cost_the_time_of_moving_them() -> None:
    picked = Chain((Select((2, 0, 1), 4, conv((1, 1))),))
    assert picked.macs((2, 4, 5, 6)) == 0
    assert workload(picked, (2, 4, 5, 6)) == MOVED * 2 * 3 * 5 * 6


def test_branches_cost_their_workloads_and_the_moving_of_each_sum() -> None:
    branch = Chain((Stage(np.zeros((BLOCK, BLOCK, 1, 1)), None, conv((1, 1))),))
    both = Chain((Branches((branch, branch, branch)),))
    shape = (1, BLOCK, 4, 4)
    sums = 2 * BLOCK * 4 * 4
    assert workload(both, shape) == 3 * workload(branch, shape) + MOVED * sums


def test_a_tensor_train_moves_numbers_from_core_to_core() -> None:
    # rows of 6 as 2 x 3, columns of 20 as 4 x 5, rank 7
    train = TensorTrainStep(
        (np.zeros((1, 2, 4, 7)), np.zeros((7, 3, 5, 1))), 20, 6, LinearGeometry()
    )
    # into the first core 4 x 5 numbers of a row, into the second 2 x 5 x 7
    moved = 4 * 5 + 2 * 7 * 5
    assert workload(Chain((train,)), (9, 20)) == train.macs((9, 20)) + 9 * moved
