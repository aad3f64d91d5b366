"""Finds the mask of padding among the inputs of a model, by running it.

An input of zeros and ones is a mask if one of both values stands exactly where no attention looks:
the softmax over the positions gives them nothing, whatever the query. So it does not matter how
the graph makes it so (added large numbers, Where, products), nor which value is padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from onnx_lowrank.errors import LowRankError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.modelfile.model import Model
from onnx_lowrank.runtime.outputs import arrays_of
from onnx_lowrank.runtime.runtime import Runtime
from onnx_lowrank.samples.dataset import Dataset
from onnx_lowrank.samples.feeds import is_float
from onnx_lowrank.samples.padding import (
    NONE,
    Array,
    Counted,
    Mask,
    PaddingOptions,
    flat,
    without_padding,
)

__all__ = ["by_length", "with_mask"]

#: names that say what an input is where the model has no Softmax that would show it
NAMES = ("attention_mask", "input_mask")
#: feeds that are looked at, and softmaxes that are run
FEEDS, SOFTMAXES = 8, 2
#: part of the largest value of an output by which it may differ where padding is cut off
SAME = 1e-3
#: part of the attention that a padded position may get, by rounding, and the least part of the
#: others that must get more
NOTHING, NEARLY_ALL = 1e-6, 0.95


def with_mask(
    data: Dataset, model: Model, runtime: Runtime, padding: PaddingOptions
) -> tuple[Dataset, str]:
    """The samples, with the mask that tells which of their positions count.

    Args:
        data: samples of the model.
        model: the original.
        runtime: runs it.
        padding: what the user says of it.

    Returns:
        The samples, and a note on the mask; empty without one.

    Raises:
        OptionError: the model has no such input as the user names.
    """
    if padding.mask == NONE:
        return data, ""
    feeds = [data.feed(i) for i in range(min(len(data), FEEDS))]
    names = list(feeds[0])
    mask = padding.mask_in(names)
    if mask is None:
        mask = _found(feeds, model, runtime)
    if mask is None:
        return data, ""
    part = _padded(data, mask)
    if not part and padding.mask is None:
        return data, ""
    return data.with_mask(mask), (
        f"{part:.0%} of the positions are padding, where {mask.name} is {mask.padding}: they "
        "count in no calibration and no comparison (--mask none has them count)"
    )


def by_length(data: Dataset, model: Model, runtime: Runtime) -> Dataset:
    """The samples in the order of their lengths, without padding behind the longest of a batch.

    They stay as they are where padding cannot be cut off, or where that changes what the model
    makes of the positions that count.

    Args:
        data: samples with a mask.
        model: the original.
        runtime: runs it.
    """
    if not data.may_be_cut:
        return data
    cut = data.by_length()
    some = sorted({0, len(data) // 2})
    (short,) = cut.subset(some).batches(len(some))
    whole = {n: np.concatenate([cut.feed(i)[n] for i in some]) for n in short}
    if all(short[n].shape == whole[n].shape for n in short):
        return data
    session = runtime.session(model, lean=True)
    try:
        made = [session.run(feed) for feed in (whole, short)]
    except LowRankError:
        return data
    counted = [data.counted(feed) for feed in (whole, short)]
    return cut if _alike(made, counted, len(some)) else data


def _alike(made: list[dict[str, Any]], counted: list[Counted | None], samples: int) -> bool:
    """Whether a model makes the same of positions that count in two forms of the same samples."""
    for name in made[0]:
        for lists in zip(*(arrays_of(m[name]) for m in made), strict=True):
            for i in range(samples):
                old, new = (
                    a[i : i + 1] if c is None else without_padding(a, c, i)
                    for a, c in zip(lists, counted, strict=True)
                )
                if old.shape != new.shape or not _close(old, new):
                    return False
    return True


def _close(old: Array, new: Array) -> bool:
    if not is_float(old.dtype):
        return np.array_equal(old, new)
    one, other = (v.astype(np.float64) for v in (old, new))
    return bool(np.allclose(one, other, rtol=0, atol=SAME * float(np.abs(one).max(initial=0))))


def _found(feeds: list[dict[str, Array]], model: Model, runtime: Runtime) -> Mask | None:
    masks = [name for name in feeds[0] if _of_zeros_and_ones([feed[name] for feed in feeds])]
    if not masks:
        return None
    looks = list(_looks(feeds, model, runtime))
    for name in masks:
        for padding in (0, 1):
            mask = Mask(name, padding)
            if _explains(mask, looks):
                return mask
    return next((Mask(n) for n in masks if n in NAMES), None) if not looks else None


def _of_zeros_and_ones(values: list[Array]) -> bool:
    """Whether an input has both values, and no other."""
    rows = [flat(v) for v in values]
    if any(r is None or r.dtype.kind not in "biuf" for r in rows):
        return False
    found = np.concatenate([np.unique(r) for r in rows if r is not None])
    return set(found.tolist()) == {0, 1}


def _explains(mask: Mask, looks: list[tuple[dict[str, Array], Array]]) -> bool:
    """Whether the padding of a mask gets nothing, and nearly all else gets something."""
    padded = given = seen = 0
    for feed, most in looks:
        values = flat(feed[mask.name])
        if values is None or most.shape != (*values.shape, values.shape[1]):
            return False
        counted = values != mask.padding
        # of queries that count: those of padding may look anywhere
        looked_at = (most * counted[:, :, None]).max(axis=1) >= NOTHING
        if looked_at[~counted].any():
            return False
        padded += int(np.count_nonzero(~counted))
        given += int(np.count_nonzero(counted))
        seen += int(np.count_nonzero(looked_at))
    return padded > 0 and seen >= NEARLY_ALL * given


def _looks(
    feeds: list[dict[str, Array]], model: Model, runtime: Runtime
) -> Iterator[tuple[dict[str, Array], Array]]:
    """Feeds, with the largest share that any head gives, ``(samples, queries, keys)``."""
    graph = Graph(model)
    softmaxes = [n.outputs[0].name for n in graph.nodes if n.op == "Softmax"][:SOFTMAXES]
    if not softmaxes:
        return
    try:
        session = runtime.session(graph.extract(graph.input_types(), softmaxes), lean=True)
        for feed in feeds:
            made = session.run(feed)
            for name in softmaxes:
                shares = np.asarray(made[name])
                if shares.ndim >= 3 and shares.shape[-1] > 1:
                    yield feed, shares.max(axis=tuple(range(1, shares.ndim - 2)))
    except LowRankError:
        return


def _padded(data: Dataset, mask: Mask) -> float:
    """Part of the positions that is padding."""
    padded = positions = 0
    for i in range(len(data)):
        feed = data.feed(i)
        counted, values = mask.counted(feed), flat(feed[mask.name])
        padded += 0 if counted is None else int(np.count_nonzero(~counted))
        positions += 0 if values is None else values.size
    return padded / positions if positions else 0.0
