"""What takes time in a chain: MACs in blocks, numbers that are moved, and nodes.

Numbers that stand between two steps in too few channels for blocks count once more: the runtime
leaves its own layout there, and comes back to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from onnx_lowrank.chains.chain import BLOCK, Chain, Stage
from onnx_lowrank.chains.protocol import Step

__all__ = ["Features", "features", "form_of", "time_in_macs"]

#: effort, bytes moved, bytes strayed and nodes of a chain
Features = tuple[float, float, float, float]

#: MACs in the time that a number takes to be read or written, to leave and enter blocks, and that a
#: node takes to be called, as ``python -m benchmarks.effort`` finds them
TOUCHED, STRAYED, CALLED = 5, 30, 120_000


def features(chain: Chain, shape: Sequence[int], itemsize: int) -> Features:
    """What a chain does.

    Args:
        chain: its numbers do not matter.
        shape: of its input.
        itemsize: bytes of one number.
    """
    effort = chain.effort(shape)
    moved = strayed = 0
    for step, strays in _with_strays(chain):
        after = step.output_shape(shape)
        moved += math.prod(shape) + math.prod(after) + step.parameters
        if strays:
            strayed += math.prod(after)
        shape = after
    return float(effort), float(moved * itemsize), float(strayed * itemsize), float(chain.nodes)


def time_in_macs(chain: Chain, shape: Sequence[int]) -> int:
    """MACs that could be done in the time of a chain, for an input of ``shape``."""
    effort, moved, strayed, nodes = features(chain, shape, 1)
    return int(effort + TOUCHED * moved + STRAYED * strayed + CALLED * nodes)


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
