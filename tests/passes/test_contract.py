"""What every built-in pass promises, checked on one small layer of every kind and on random ones.

What a single method promises beyond this (optimality, planted ranks, reasons of its own) is tested
in the file of its pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_lowrank.analysis.moments import Moments, relative_error
from onnx_lowrank.chains.chain import Rank
from onnx_lowrank.chains.geometry import ConvGeometry
from onnx_lowrank.layers import Layer
from onnx_lowrank.passes import BUILT_IN
from onnx_lowrank.passkit.base import Decomposition, Factorization, Pass, Rewrite, Skip
from onnx_lowrank.planning.registry import parse
from tests import fixtures_channels as fc
from tests.fixtures_layers import LAYERS
from tests.support import (
    assert_judged,
    assert_outlined,
    bias_of,
    checked,
    conv_example,
    geometries,
    graph_of,
    only_layer,
    quick,
    random_moments,
    relative,
    replaced,
    rng,
    run,
)

#: largest relative difference of outputs that float32 explains
FLOAT32 = 1e-4

PRODUCTS = {"gemm", "gemm scaled", "gemm transposed", "matmul", "matmul left"}
POINTWISE = {"pointwise", "pointwise grouped"}
ONE_AXIS = {"conv1d", "column", "transposed grouped"}
SEVERAL_AXES = {"square", "uneven", "same", "grouped", "transposed", "conv3d", "flat conv3d"}
KERNELS = ONE_AXIS | SEVERAL_AXES
RECURRENT = {"lstm", "gru", "rnn"}


@dataclass(frozen=True)
class Contract:
    """What is particular to a factorization.

    Attributes:
        takes: the layers of the table that it does not skip.
        others: specifications with other options, tried on a few layers.
        exact: whether its largest rank loses nothing.
        kept: the least part of an error claimed in a plan that a cut may have; 1 where cuts are
            not refined any further.
        local: factor by which a local optimum under the data may be worse than one under the
            weights; 1 where it cannot be.
    """

    takes: set[str]
    others: tuple[str, ...] = ()
    exact: bool = True
    kept: float = 1.0
    local: float = 1.0


CONTRACTS: dict[str, Contract] = {
    "svd": Contract(
        PRODUCTS | POINTWISE,
        ("svd{metric=identity}", "svd{metric=diagonal}", "svd{metric=elementwise}"),
    ),
    "spatial_svd": Contract(
        SEVERAL_AXES,
        ("spatial_svd{metric=identity}", "spatial_svd{split=vh,metric=diagonal}"),
        kept=0.7,
    ),
    "channel_svd": Contract(
        KERNELS,
        ("channel_svd{metric=identity}", "channel_svd{order=pointwise_first}"),
        kept=0.7,
    ),
    "tucker2": Contract(KERNELS, ("tucker2{metric=identity}",), kept=0.7),
    "cp": Contract(
        KERNELS, ("cp{metric=identity}", "cp{form=three,starts=2}"), exact=False
    ),
    "tensor_train": Contract(
        PRODUCTS - {"gemm transposed", "matmul left"},
        ("tensor_train{metric=identity}", "tensor_train{cores=4}"),
        kept=0.5,
    ),
    "recurrent_svd": Contract(
        RECURRENT, ("recurrent_svd{metric=identity}", "recurrent_svd{metric=diagonal}")
    ),
    "monochromatic": Contract(
        KERNELS, ("monochromatic{metric=identity}",), exact=False
    ),
    "bicluster": Contract(
        KERNELS, ("bicluster{metric=identity}",), exact=False
    ),
    "lowrank_sparse": Contract(
        PRODUCTS | POINTWISE | KERNELS,
        ("lowrank_sparse{metric=identity}", "lowrank_sparse{response=relu}"),
        local=1.05,
    ),
    "circulant": Contract(
        PRODUCTS | POINTWISE | KERNELS,
        ("circulant{metric=identity}", "circulant{basis=orthogonal}"),
        kept=0.7,
    ),
}  # fmt: skip

#: no table is small: the file of this pass has some, and the same promises
_OF_TABLES = {"embedding_svd"}

FACTORIZATIONS = [p for p in BUILT_IN if issubclass(p, Factorization) and p.name not in _OF_TABLES]


def factorization(spec: str) -> Factorization:
    found = parse(spec)
    assert isinstance(found, Factorization)
    return found


#: layers that specifications with other options are tried on, and passes that solve every rank
FEW = ("gemm", "pointwise grouped", "conv1d", "uneven", "grouped", "lstm")


def pairs() -> Iterator[tuple[str, str]]:
    """A specification and a layer that it takes."""
    for name, contract in CONTRACTS.items():
        tried = FEW if factorization(name).slow else LAYERS
        yield from ((name, layer) for layer in tried if layer in contract.takes)
        yield from product(contract.others, [x for x in FEW if x in contract.takes])


#: passes that are tried in every run on their first layer alone
SELDOM = {"bicluster", "monochromatic", "lowrank_sparse"}

#: pairs whose largest rank is the layer itself; the others have a bound in their own files
EXACT = [pair for pair in pairs() if CONTRACTS[pair[0].partition("{")[0]].exact]


@lru_cache
def small_layer(kind: str, seed: int = 0) -> Layer:
    case = LAYERS[kind]
    return only_layer(case.build(*case.numbers(seed)))


@lru_cache
def both_moments(kind: str) -> tuple[Moments, Moments]:
    """Those of no data, and of some."""
    return Moments(), random_moments(small_layer(kind), 3)


@dataclass(frozen=True)
class Proposed:
    """What a pass proposes for a layer, without data and with data."""

    spec: str
    kind: str

    @property
    def contract(self) -> Contract:
        return CONTRACTS[self.spec.partition("{")[0]]

    @property
    def layer(self) -> Layer:
        return small_layer(self.kind)

    @cached_property
    def forms(self) -> list[tuple[Moments, Decomposition]]:
        found = [
            (moments, form)
            for moments in both_moments(self.kind)
            for form in factorization(self.spec).propose(self.layer, moments)
        ]
        assert found
        return found

    @property
    def fitted_to_data(self) -> list[Decomposition]:
        return [form for moments, form in self.forms if moments.covariance is not None]


def cases() -> Iterator[Any]:
    """All pairs; of passes that take long and are off by default, most go behind ``full``."""
    seen = set()
    for spec, layer in pairs():
        name = spec.partition("{")[0]
        marks = [pytest.mark.full] if name in SELDOM & seen else []
        seen.add(name)
        yield pytest.param((spec, layer), id=f"{spec}-{layer}", marks=marks)


@pytest.fixture(scope="module", params=list(cases()))
def case(request: pytest.FixtureRequest) -> Proposed:
    """A pass on a layer; tests of one come one after the other and share its cuts."""
    return Proposed(*request.param)


def ranks_of(form: Any) -> list[Rank]:
    """The smallest ranks, some between, and the largest."""
    most = form.max_rank
    if isinstance(most, int):
        if form.variant == "equal":  # colours in equal shares
            return [r for r in range(1, most + 1) if most % r == 0]
        return sorted({1, 2, (most + 1) // 2, most})
    if form.variant.startswith("outer"):  # one number of outer products
        return [(r, r) for r in range(1, min(most) + 1)]
    return sorted({(1, 1), (1, min(2, most[1])), (min(2, most[0]), 1), most})


# passes by name


def test_every_factorization_has_a_contract() -> None:
    assert list(CONTRACTS) == [p.name for p in FACTORIZATIONS]


def variants(cls: type[Pass]) -> Iterator[Pass]:
    """The pass with each of its options changed."""
    yield cls()
    for option in fields(cls):
        default, choices = getattr(cls(), option.name), getattr(cls, "choices", {})
        others: Any = choices.get(option.name)
        if others is None:
            others = [not default] if isinstance(default, bool) else [default + type(default)(2)]
        for value in others:
            yield replace(cls(), **{option.name: value})


@pytest.mark.parametrize("cls", BUILT_IN, ids=lambda p: p.name)
def test_specifications_are_read_as_they_are_written(cls: type[Pass]) -> None:
    made = list(variants(cls))
    assert len({p.spec for p in made}) == len(set(made)) >= len(fields(cls))
    for one in made:
        assert parse(one.spec) == one
    assert all(f.name in cls.explain() for f in fields(cls))


# which layers


@pytest.mark.parametrize("name", CONTRACTS)
def test_layers_are_taken_or_left_with_a_reason(name: str) -> None:
    taken = set()
    for kind in LAYERS:
        skip = factorization(name).skips(small_layer(kind))
        if skip is None:
            taken.add(kind)
        else:
            assert isinstance(skip, Skip)
            assert skip.reason == skip.reason.strip() != ""
    assert taken == CONTRACTS[name].takes


# arrays


def test_errors_and_outlines_are_those_of_the_cuts(case: Proposed) -> None:
    for moments, form in case.forms:
        ranks = ranks_of(form)
        for rank in ranks:
            chain = form.cut(rank)
            assert_outlined(form, rank, chain, case.layer)
            if "relu" not in case.spec:  # its error is told before the fit behind the ReLU
                assert_judged(form, rank, chain, case.layer, moments, case.contract.kept)
        if case.spec in CONTRACTS or moments.covariance is None:  # fitted as it is judged
            assert all(form.error(r) <= 1 + 1e-9 for r in ranks)
            assert form.error(ranks[-1]) < 0.95 * form.error(ranks[0])
            for low, high in product(ranks, ranks):
                if np.all(np.less_equal(low, high)):
                    assert form.error(high) <= form.error(low) + 1e-6, (form.variant, low, high)


def test_the_mean_response_stays(case: Proposed) -> None:
    """Whatever is cut away, the mean patch gets the response that it had."""
    stage, mean = case.layer.stage, both_moments(case.kind)[1].mean
    assert mean is not None
    assert stage.bias is not None
    wanted = np.einsum("gnd,gd->gn", stage.matrices, mean).ravel() + stage.bias
    for form in case.fitted_to_data:
        chain = form.cut(ranks_of(form)[0])
        bias = bias_of(chain)
        assert bias is not None
        if "identity" in case.spec:  # knows of no data
            np.testing.assert_array_equal(bias, stage.bias)
        elif "relu" not in case.spec:  # keeps the mean behind the ReLU
            matrices = chain.dense(case.layer.groups).reshape(stage.matrices.shape)
            got = np.einsum("gnd,gd->gn", matrices, mean).ravel() + bias
            assert relative(wanted, got) < 1e-9


def test_cuts_are_repeated_and_leave_the_layer_as_it_is(case: Proposed) -> None:
    layer = case.layer
    before = layer.stage.weight
    again = factorization(case.spec).propose(layer, both_moments(case.kind)[1])
    for one, two in zip(case.fitted_to_data, again, strict=True):
        rank = ranks_of(one)[-1]
        two.error(ranks_of(two)[0])  # what was asked before does not matter
        first, second = one.cut(rank), two.cut(rank)
        np.testing.assert_array_equal(first.dense(layer.groups), second.dense(layer.groups))
        assert one.error(rank) == two.error(rank)
    np.testing.assert_array_equal(before, layer.stage.weight)


def test_onnx_runtime_computes_the_kernel_that_a_chain_says(case: Proposed) -> None:
    made, layer = LAYERS[case.kind], case.layer
    proto, feed = made.build(*made.numbers(0)), made.feed(0)
    for _, form in case.forms:
        for rank in {ranks_of(form)[0], ranks_of(form)[-1]}:
            chain = form.cut(rank)
            whole = made.build(chain.dense(layer.groups).reshape(layer.shape), bias_of(chain))
            again = replaced(proto, layer.name, chain)
            assert relative(run(whole, feed)["y"], run(again, feed)["y"]) < FLOAT32, rank


@pytest.mark.parametrize("case", EXACT, indirect=True, ids="-".join)
def test_the_largest_rank_loses_nothing(case: Proposed) -> None:
    made = LAYERS[case.kind]
    proto, feed = made.build(*made.numbers(0)), made.feed(0)
    for _, form in case.forms:
        again = replaced(proto, case.layer.name, form.cut(ranks_of(form)[-1]))
        assert len(again.graph.node) > len(proto.graph.node)
        assert relative(run(proto, feed)["y"], run(again, feed)["y"]) < FLOAT32, form.variant


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_dead_layer_stays_dead(name: str) -> None:
    for kind in sorted(CONTRACTS[name].takes & set(FEW)):
        made = LAYERS[kind]
        layer = only_layer(made.build(np.zeros(made.shape), None))
        for moments in both_moments(kind):
            for form in factorization(name).propose(layer, moments):
                assert form.error(ranks_of(form)[0]) == 0
                assert not form.cut(ranks_of(form)[0]).dense(layer.groups).any()


@pytest.mark.parametrize("name", CONTRACTS)
def test_ranks_of_another_number_are_refused(name: str) -> None:
    kind = next(k for k in LAYERS if k in CONTRACTS[name].takes)
    for _, form in Proposed(name, kind).forms:
        single = isinstance(ranks_of(form)[0], int)
        wrong: list[Rank] = [(1, 1)] if single else [1, (1,), (1, 1, 1)]
        for rank in wrong:
            for ask in (form.error, form.outline, form.cut):
                with pytest.raises(ValueError, match="one rank," if single else "two ranks,"):
                    ask(rank)


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_data_count(name: str) -> None:
    """Fitted to the data, no rank loses more on them than fitted to the weights, and one less."""
    contract = CONTRACTS[name]
    kinds = [k for k in FEW if k in contract.takes]
    for kind in kinds[-1:] if factorization(name).slow else kinds:
        layer, moments = small_layer(kind), both_moments(kind)[1]
        ours, plain = (
            factorization(f"{name}{{metric={metric}}}").propose(layer, moments)
            for metric in ("covariance", "identity")
        )
        gains = []
        for one, other in zip(ours, plain, strict=True):
            for rank in ranks_of(one):
                best, theirs = (relative_error(layer.stage, f.cut(rank), moments)
                                for f in (one, other))  # fmt: skip
                assert best <= contract.local * theirs + 1e-9, (kind, one.variant, rank)
                gains.append(theirs - best)
        assert max(gains) > 1e-3, kind


# random layers

#: factorizations of convolutions but the slowest, which has planted kernels in its own file
CONVOLUTIONS = [
    name
    for name, contract in CONTRACTS.items()
    if contract.takes & (POINTWISE | KERNELS) and name != "bicluster"
]


@pytest.mark.full
@pytest.mark.parametrize("name", CONVOLUTIONS)
@quick(25)
@given(geometries(), st.sampled_from([9, 11, 13, 17, 21]), st.booleans(), st.integers(0, 99))
def test_any_convolution(
    name: str, geometry: ConvGeometry, opset: int, data: bool, seed: int
) -> None:
    if name == "svd":
        geometry = replace(geometry, kernel=(1,) * geometry.axes)
    contract, made = CONTRACTS[name], factorization(name)
    proto, feed = conv_example(geometry, seed, opset=opset, inputs=4)
    layer = only_layer(proto)
    assume(made.skips(layer) is None)
    moments = random_moments(layer, seed) if data else Moments()
    wanted = run(proto, feed)["y"]
    for form in made.propose(layer, moments):
        rank = rng(seed, 8).choice(np.array(ranks_of(form), dtype=object))
        rank = tuple(rank) if not isinstance(rank, int) else rank
        chain = form.cut(rank)
        assert_outlined(form, rank, chain, layer)
        assert_judged(form, rank, chain, layer, moments, contract.kept)
        if contract.exact:
            again = replaced(proto, layer.name, form.cut(ranks_of(form)[-1]))
            assert relative(wanted, run(again, feed)["y"]) < FLOAT32, form.variant


# rewrites


@pytest.mark.parametrize("cls", [p for p in BUILT_IN if issubclass(p, Rewrite)])
@pytest.mark.parametrize(
    "net", ["plain", "batchnorm", "affine", "residual", "depthwise", "grouped"]
)
def test_a_rewrite_changes_no_output_and_has_an_end(cls: type[Rewrite], net: str) -> None:
    proto, made = fc.build(net)
    feed = made.feed()
    graph = graph_of(proto)
    edits = cls().run(graph)
    after = checked(graph)
    assert (after == graph_of(proto).to_model().proto) == (not edits)
    for name, values in run(proto, feed).items():
        assert relative(values, run(after, feed)[name]) < FLOAT32
    assert not cls().run(graph_of(after))
    for allowed in range(len(edits) + 1):
        assert len(cls().run(graph_of(proto), allowed)) == allowed
