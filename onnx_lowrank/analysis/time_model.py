"""What takes time in a chain: MACs in whole blocks, numbers that are moved, and nodes.

A runtime with channel blocks computes each block whole, so the *effort* of a chain is the MACs that
such a runtime carries out, and a step that waits for memory counts as the MACs that could be done
meanwhile. Numbers that stand between two steps in too few channels for a block count once more: the
runtime leaves its own layout there, and comes back to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep

__all__ = [
    "BLOCK",
    "CALLED",
    "MOVED",
    "STRAYED",
    "TOUCHED",
    "Features",
    "effort",
    "features",
    "form_of",
    "in_blocks",
    "time_in_macs",
]

#: Channels that ONNX Runtime's blocked convolutions (NCHWc) compute at a time: 16 with AVX-512, a
#: divisor of it elsewhere. A block is paid for whole, on the input as on the output side.
BLOCK = 16

#: MACs in the time that one number takes from memory to memory, in and out of blocks
MOVED = 100

#: effort, bytes moved, bytes strayed and nodes of a chain
Features = tuple[float, float, float, float]

#: MACs in the time that a number takes to be read or written, to leave and enter blocks, and that a
#: node takes to be called, as ``python -m benchmarks effort`` finds them
TOUCHED, STRAYED, CALLED = 5, 30, 120_000


def in_blocks(stage: Stage) -> bool:
    """Whether a runtime that has channel blocks (:data:`BLOCK`) computes ``stage`` in them."""
    plain = isinstance(stage.geometry, ConvGeometry) and not stage.geometry.transposed
    return plain and (stage.groups == 1 or stage.depthwise)


def effort(chain: Chain, shape: Sequence[int]) -> int:
    """MACs that a runtime with channel blocks carries out for an input of ``shape``."""
    return sum(_effort(step, at) for step, at in chain.with_shapes(shape))


def _effort(step: Step, shape: Sequence[int]) -> int:
    if isinstance(step, Stage) and in_blocks(step):
        return _effort_in_blocks(step, shape)
    if isinstance(step, Select):  # does nothing but wait for memory
        return MOVED * math.prod(step.output_shape(shape))
    if isinstance(step, Branches):
        added = MOVED * (len(step.chains) - 1) * math.prod(step.output_shape(shape))
        return sum(effort(chain, shape) for chain in step.chains) + added
    if isinstance(step, TensorTrainStep):
        return step.macs(shape) + _between_cores(step) * int(step.geometry.rows(shape))
    return step.macs(shape)


def _effort_in_blocks(stage: Stage, shape: Sequence[int]) -> int:
    """MACs of whole blocks; none of a depthwise convolution, which waits for memory."""
    if stage.depthwise:
        return 0
    outputs, inputs = (math.ceil(n / BLOCK) * BLOCK for n in stage.weight.shape[:2])
    if stage.inputs < 4:  # the first convolution reads its few channels unblocked
        inputs = stage.inputs
    return int(outputs * inputs * math.prod(stage.weight.shape[2:]) * stage.geometry.rows(shape))


def _between_cores(train: TensorTrainStep) -> int:
    """Numbers that a tensor train moves from core to core for each row; each counts as one MAC."""
    moved = 0
    for k, core in enumerate(train.cores):
        beside = math.prod(train.row_modes[:k]) * math.prod(train.column_modes[k + 1 :])
        moved += beside * int(core.shape[0] * core.shape[2])
    return moved


def features(chain: Chain, shape: Sequence[int], itemsize: int) -> Features:
    """What a chain does.

    Args:
        chain: its numbers do not matter.
        shape: of its input.
        itemsize: bytes of one number.
    """
    work = effort(chain, shape)
    moved = strayed = 0
    for step, strays in _with_strays(chain):
        after = step.output_shape(shape)
        moved += math.prod(shape) + math.prod(after) + step.parameters
        if strays:
            strayed += math.prod(after)
        shape = after
    return float(work), float(moved * itemsize), float(strayed * itemsize), float(chain.nodes)


def time_in_macs(chain: Chain, shape: Sequence[int]) -> int:
    """MACs that could be done in the time of a chain, for an input of ``shape``."""
    work, moved, strayed, nodes = features(chain, shape, 1)
    return int(work + TOUCHED * moved + STRAYED * strayed + CALLED * nodes)


def form_of(chain: Chain) -> str:
    """Equal for chains of one method at several ranks, as long as they fill blocks or do not."""
    parts = []
    for step, strays in _with_strays(chain):
        part = f"{type(step).__name__} {step.role}"
        if isinstance(step, Stage):
            part += f" {step.geometry.kernel}{' depthwise' if step.depthwise else ''}"
        if strays:
            part += " strayed"
        parts.append(part)
    return " > ".join(parts)


def _with_strays(chain: Chain) -> Iterator[tuple[Step, bool]]:
    """Each step, and whether its output cannot stay in blocks until the next step.

    A convolution reads fewer channels than a block in plain layout, and one with groups reads
    whole blocks alone.
    """
    for step, after in zip_longest(chain.stages, chain.stages[1:]):
        fills = after is None or (
            step.outputs >= BLOCK and (after.groups == 1 or step.outputs % BLOCK == 0)
        )
        yield step, not fills
