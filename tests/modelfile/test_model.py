from __future__ import annotations

from pathlib import Path

import onnx

from onnx_lowrank.modelfile.loading import load
from tests import fixtures_models as fm


def test_digest_is_of_the_contents(tmp_path: Path) -> None:
    onnx.save(fm.dressed(), tmp_path / "in.onnx")
    assert load(tmp_path / "in.onnx").digest == load(fm.dressed()).digest
    other = fm.dressed()
    other.doc_string = "another"
    assert load(other).digest != load(fm.dressed()).digest
