"""Model of the time that a chain takes: MACs in whole blocks, numbers that are moved, and nodes.

A runtime with channel blocks computes each block whole, so the *workload* of a chain is the number
of MACs that such a runtime carries out, and a step that waits for memory counts as the MACs that
could be done meanwhile. A tensor between two steps with too few channels for a block costs more:
the runtime converts it out of its blocked layout and back (*relayout*).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from onnx_lowrank.chains.chain import Chain, Stage
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.chains.lookup_geometry import LookupGeometry
from onnx_lowrank.chains.protocol import Step
from onnx_lowrank.chains.special_stages import Branches, Select, TensorTrainStep

__all__ = [
    "BLOCK",
    "CALL",
    "MOVED",
    "READ",
    "RELAYOUT",
    "Features",
    "features",
    "form_of",
    "in_blocks",
    "time_in_macs",
    "workload",
]

#: Channels that ONNX Runtime's blocked convolutions (NCHWc) compute at a time: 16 with AVX-512, a
#: divisor of it elsewhere. A block is paid for whole, on the input as on the output side.
BLOCK = 16

#: number of MACs in the time of copying one number to a tensor in another layout
MOVED = 100

#: workload in MACs, bytes moved, bytes in a relayout, and nodes of a chain
Features = tuple[float, float, float, float]

#: number of MACs in the time of reading or writing a number, of converting a number out of blocks
#: and back, and of calling a node, as measured by ``python -m benchmarks workload``
READ, RELAYOUT, CALL = 5, 30, 120_000


def in_blocks(stage: Stage) -> bool:
    """Whether a runtime that has channel blocks (:data:`BLOCK`) computes ``stage`` in them."""
    plain = isinstance(stage.geometry, ConvGeometry) and not stage.geometry.transposed
    return plain and (stage.groups == 1 or stage.depthwise)


def workload(chain: Chain, shape: Sequence[int]) -> int:
    """MACs that a runtime with channel blocks carries out for an input of ``shape``."""
    return sum(_workload(step, at) for step, at in chain.with_shapes(shape))


def _workload(step: Step, shape: Sequence[int]) -> int:
    if isinstance(step, Stage) and in_blocks(step):
        return _workload_in_blocks(step, shape)
    if isinstance(step, Select):  # does nothing but wait for memory
        return MOVED * math.prod(step.output_shape(shape))
    if isinstance(step, Branches):
        added = MOVED * (len(step.chains) - 1) * math.prod(step.output_shape(shape))
        return sum(workload(chain, shape) for chain in step.chains) + added
    if isinstance(step, TensorTrainStep):
        return step.macs(shape) + _between_cores(step) * int(step.geometry.rows(shape))
    return step.macs(shape)


def _workload_in_blocks(stage: Stage, shape: Sequence[int]) -> int:
    """MACs of whole blocks; 0 for a depthwise convolution, which waits for memory."""
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
    """Features of a chain that its time depends on.

    Args:
        chain: the chain; its weights do not count.
        shape: shape of its input.
        itemsize: size of one number, in bytes.
    """
    work = workload(chain, shape)
    moved = relayout = 0
    for step, leaves_blocks in _with_relayouts(chain):
        after = step.output_shape(shape)
        moved += math.prod(shape) + math.prod(after) + _numbers_read(step, after)
        if leaves_blocks:
            relayout += math.prod(after)
        shape = after
    return float(work), float(moved * itemsize), float(relayout * itemsize), float(chain.nodes)


def _numbers_read(step: Step, after: Sequence[int]) -> int:
    """Numbers of a step's constants that are read: of a table only the rows that are wanted."""
    if isinstance(step, Stage) and isinstance(step.geometry, LookupGeometry):
        return min(step.parameters, math.prod(after))
    return step.parameters


def time_in_macs(chain: Chain, shape: Sequence[int]) -> int:
    """Number of MACs that could be done in the time of a chain, for an input of ``shape``."""
    work, moved, relayout, nodes = features(chain, shape, 1)
    return int(work + READ * moved + RELAYOUT * relayout + CALL * nodes)


def form_of(chain: Chain) -> str:
    """Text that is equal for chains of one method at several ranks with the same relayouts."""
    parts = []
    for step, leaves_blocks in _with_relayouts(chain):
        part = f"{type(step).__name__} {step.role}"
        if isinstance(step, Stage):
            part += f" {step.geometry.kernel}{' depthwise' if step.depthwise else ''}"
        if leaves_blocks:
            part += " relayout"
        parts.append(part)
    return " > ".join(parts)


def _with_relayouts(chain: Chain) -> Iterator[tuple[Step, bool]]:
    """Yield each step, and whether its output leaves the blocked layout before the next step.

    A convolution reads fewer channels than a block in plain layout, and one with groups reads
    only whole blocks.
    """
    for step, after in zip_longest(chain.stages, chain.stages[1:]):
        fills = after is None or (
            step.outputs >= BLOCK and (after.groups == 1 or step.outputs % BLOCK == 0)
        )
        yield step, not fills
