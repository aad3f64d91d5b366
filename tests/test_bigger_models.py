"""Models that people use keep what they are for, by their own measure, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import onnx_lowrank
from benchmarks.bigger_nets import BIGGER, FOLDER
from benchmarks.user_measures import LINES, SENTENCES
from onnx_lowrank.analysis.row_counts import RowCounts
from onnx_lowrank.errors import GuardError
from onnx_lowrank.graph.graph import Graph
from onnx_lowrank.layers import find_layers
from onnx_lowrank.layers.writer import apply_chain
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import save
from onnx_lowrank.passes import EmbeddingSvd
from tests import fixtures_models as fm
from tests.scripted_timer import taking

pytestmark = [pytest.mark.real, pytest.mark.slow]

READER, ENCODER = BIGGER["ppocrv5_rec"], BIGGER["all_minilm_l6_v2"]
DRAWN, TESTED = 40, 60


@pytest.mark.skipif(
    not (READER.path.is_file() and fm.SHARED.joinpath("real").is_dir()),
    reason=f"{READER.path.name} is not in {FOLDER.name}, or its lines are not in ../shared/real",
)
def test_a_reader_of_lines_keeps_them_or_is_refused(tmp_path: Path) -> None:
    """A small squared error in the scores of 18,385 classes may leave no line as it was."""
    samples, output = READER.read(), tmp_path / "out.onnx"
    calib = {"x": samples["x"][:DRAWN]}
    tested = {name: samples[f"test.{name}"][:TESTED] for name in ("x", "labels")}
    try:
        result = onnx_lowrank.compress(
            READER.path, calib=calib, target="macs=0.7", seed=0, timer=taking(0.5)
        )
    except GuardError:
        return
    result.save(output)
    reference, new = (LINES.answer(path, tested) for path in (READER.path, output))
    found = LINES.figures(reference, new, tested)
    assert found["lines"] >= 0.9 * found["lines_before"]


@pytest.mark.skipif(
    not (ENCODER.path.is_file() and fm.SHARED.joinpath("real").is_dir()),
    reason=f"{ENCODER.path.name} is not in {FOLDER.name}, or its texts are not in ../shared/real",
)
def test_a_table_of_embeddings_is_fitted_to_what_is_read(tmp_path: Path) -> None:
    """Through 160 of 384 features similarities stay, if rows count by how often they are read."""
    samples = ENCODER.read()
    tested = {k.removeprefix("test."): v for k, v in samples.items() if k.startswith("test.")}
    reference, kept = SENTENCES.answer(ENCODER.path, tested), {}
    for metric in ("covariance", "identity"):
        graph = Graph(load(ENCODER.path))
        layer = next(la for la in find_layers(graph)[0] if la.value.lookup)
        counts = RowCounts(layer.shape[1])
        counts.update(samples["input_ids"])
        (form,) = EmbeddingSvd(metric).propose(layer.value, counts.moments())
        apply_chain(graph, layer, form.cut(160))
        save(graph.to_model(), tmp_path / "out.onnx")
        new = SENTENCES.answer(tmp_path / "out.onnx", tested)
        kept[metric] = SENTENCES.figures(reference, new, tested)["sts"]
    assert kept["covariance"] > 81.0
    assert kept["identity"] < kept["covariance"] - 2
