from __future__ import annotations

import pytest

from onnx_lowrank.report.alike import alike, kind_of, pattern


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["conv"], "conv"),
        (["layer.0/fc", "layer.1/fc"], "layer.{0,1}/fc"),
        (["layer.9/fc", "layer.10/fc", "layer.11/fc"], "layer.{9..11}/fc"),
        (["s1/c1/w", "s1/c2/w", "s2/c1/w"], "s{1,2}/c{1,2}/w"),
        (["node_12", "node_75", "node_135"], "node_{12..135}"),
        # exporters number what has a name already
        (["attention", "attention_1", "attention_2"], "attention*"),
        (["b.0/conv", "b.0/conv_1", "b.1/conv"], "b.{0,1}/conv*"),
        (["07", "7"], "{07,7}"),
        (["x", "x"], "x"),
    ],
)
def test_names_of_one_kind(names: list[str], told: str) -> None:
    assert len({kind_of(name) for name in names}) == 1
    assert pattern(names) == told


@pytest.mark.parametrize(
    ("one", "other"),
    [("layer.0/key", "layer.0/query"), ("fc1/w", "fc/w"), ("a_1_b", "a_1"), ("conv", "Conv")],
)
def test_names_of_two_kinds(one: str, other: str) -> None:
    assert kind_of(one) != kind_of(other)


def test_rows_stand_where_their_first_stood() -> None:
    assert alike("abcab", str) == [["a", "a"], ["b", "b"], ["c"]]
    assert alike("", str) == []
