from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.passes import (
    BUILT_IN,
    AttentionRank,
    ChannelSvd,
    FoldBatchnorm,
    SpatialSvd,
    Svd,
)
from onnx_lowrank.passkit.base import Rewrite
from onnx_lowrank.planning import registry
from onnx_lowrank.planning.registry import available, parse, parse_list, pass_class


@dataclass(frozen=True)
class Entry:
    """What importlib.metadata returns."""

    name: str
    target: object
    value: str = "elsewhere:Thing"

    def load(self) -> object:
        return self.target


@dataclass(frozen=True)
class Typed(Rewrite):
    name: ClassVar[str] = "typed"

    flag: bool = False
    max_count: int = 3
    ratio: float = 0.5

    def run(self, graph: object, max_edits: int | None = None) -> tuple[()]:
        return ()


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, Entry("typed", Typed))


def entries(monkeypatch: pytest.MonkeyPatch, *found: Entry) -> None:
    def entry_points(*, group: str) -> tuple[Entry, ...]:
        assert group == "onnx_lowrank.passes"
        return found

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("svd", Svd()),
        (" svd ", Svd()),
        ("svd{}", Svd()),
        ("svd{metric=identity}", Svd(metric="identity")),
        ("spatial-svd", SpatialSvd()),
        ("spatial_svd{split=vh,metric=identity}", SpatialSvd(metric="identity", split="vh")),
        ("spatial-svd{ split = hv , metric = covariance }", SpatialSvd(split="hv")),
        ("channel_svd{order=pointwise_first}", ChannelSvd(order="pointwise_first")),
        ("fold-batchnorm", FoldBatchnorm()),
    ],
)
def test_parse(spec: str, wanted: object) -> None:
    assert parse(spec) == wanted


@pytest.mark.parametrize(
    "instance",
    [Svd(), Svd(metric="identity"), SpatialSvd("identity", "hv"), ChannelSvd(), FoldBatchnorm()],
)
def test_spec_is_read_back(instance: Svd | SpatialSvd | ChannelSvd | FoldBatchnorm) -> None:
    assert parse(instance.spec) == instance


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("typed{flag=true}", Typed(flag=True)),
        ("typed{flag=False,max-count=7}", Typed(max_count=7)),
        ("typed{max_count=7}", Typed(max_count=7)),
        ("typed{ratio=0.25}", Typed(ratio=0.25)),
    ],
)
def test_options_take_the_type_of_their_default(spec: str, wanted: object) -> None:
    assert parse(spec) == wanted


@pytest.mark.usefixtures("typed")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nonsense", ["no pass named 'nonsense'", "svd", "spatial_svd", "fold_batchnorm"]),
        ("svd{rank=3}", ["svd has no option 'rank'", "metric"]),
        ("svd{metric}", ["svd has no option 'metric'"]),
        ("fold_batchnorm{x=1}", ["fold_batchnorm has no option 'x'", "it has none"]),
        ("svd{metric=euclid}", ["metric is 'euclid'", "covariance, identity"]),
        ("spatial_svd{split=xy}", ["split is 'xy'", "both, vh, hv"]),
        ("typed{flag=1}", ["flag is '1'; it should be true or false"]),
        ("typed{max-count=many}", ["max_count is 'many'; it should be of type int"]),
        ("svd{metric=identity", ["cannot read pass", "name{option=value,...}"]),
        ("svd{metric={identity}}", ["cannot read pass"]),
        ("", ["cannot read pass ''"]),
        ("svd spatial_svd", ["cannot read pass"]),
    ],
)
def test_errors_name_the_choices(spec: str, words: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        parse(spec)
    for word in words:
        assert word in str(caught.value)


def test_parse_list_sorts_by_kind_and_keeps_the_order() -> None:
    text = "spatial_svd{split=vh,metric=identity},fold_batchnorm,svd"
    factorizations = [SpatialSvd(metric="identity", split="vh"), Svd()]
    assert parse_list(text) == ([FoldBatchnorm()], factorizations, [], [])
    given = [AttentionRank(), Svd(metric="identity"), "fold-batchnorm"]
    assert parse_list(given) == (
        [FoldBatchnorm()],
        [Svd(metric="identity")],
        [],
        [AttentionRank()],
    )


def test_built_in_passes_come_first_in_their_order() -> None:
    assert list(available().values())[: len(BUILT_IN)] == list(BUILT_IN)
    assert pass_class("channel-svd") is ChannelSvd


def test_passes_of_other_packages_come_after(monkeypatch: pytest.MonkeyPatch) -> None:
    entries(monkeypatch, Entry("typed", Typed))
    assert list(available()) == [*(p.name for p in BUILT_IN), "typed"]
    assert pass_class("typed") is Typed


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (Entry("bad", object()), "entry point 'bad' .elsewhere:Thing. is not a subclass of"),
        (Entry("bad", int), "is not a subclass of"),
        (Entry("again", Svd), "'svd' of elsewhere:Thing has the name of another pass"),
    ],
)
def test_bad_entry_points(monkeypatch: pytest.MonkeyPatch, entry: Entry, words: str) -> None:
    entries(monkeypatch, entry)
    with pytest.raises(OptionError, match=words):
        available()


def test_explain_lists_the_options_with_their_defaults() -> None:
    text = SpatialSvd.explain()
    assert text.startswith("spatial_svd: ")
    assert "metric = 'covariance'" in text
    assert "split = 'both'" in text
    assert "Options:" not in FoldBatchnorm.explain()


# packages that are broken


def test_a_package_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unloadable(Entry):
        def load(self) -> object:
            raise ImportError("No module named 'numba'")

    entries(monkeypatch, Unloadable("mine", None))
    wanted = r"'mine' \(elsewhere:Thing\) cannot be loaded: ImportError: No module named 'numba'"
    with pytest.raises(OptionError, match=wanted):
        available()


def test_an_option_that_its_pass_refuses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Choosy(Typed):
        def __post_init__(self) -> None:
            if self.max_count < 1:
                raise ValueError("max_count must be 1 or more")

    entries(monkeypatch, Entry("typed", Choosy))
    with pytest.raises(OptionError, match=r"typed\{max_count=0\}: max_count must be 1 or more"):
        parse("typed{max_count=0}")
