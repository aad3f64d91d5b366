"""The pass for Olive: the workflow of the documentation, run by Olive itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from tests import fixtures_models as fm

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(find_spec("olive") is None, reason="the extra olive is not installed"),
]
ENVIRONMENT = {
    **os.environ, "CI": "1", "OLIVE_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(fm.ROOT),
}  # fmt: skip


def blocks(language: str) -> list[str]:
    """Blocks of code in the documentation."""
    text = (fm.ROOT / "docs" / "olive.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(code: str, folder: Path) -> str:
    """Run Python in a folder that has the models, and return what it wrote."""
    if not (folder / "models").exists():
        (folder / "models").symlink_to(fm.ROOT / "models")
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_the_workflow_of_the_documentation(tmp_path: Path) -> None:
    (workflow,), (code,) = blocks("json"), blocks("python")
    (tmp_path / "workflow.json").write_text(workflow, encoding="utf-8")
    run(code, tmp_path)
    report = json.loads((tmp_path / "lowrank.json").read_text(encoding="utf-8"))
    assert report["target"] == "macs=0.5"
    macs = report["model"]["after"]["macs"] / report["model"]["before"]["macs"]
    assert 0.3 < macs <= 0.5
    (model,) = (tmp_path / "olive_out").rglob("*.onnx")
    made = [node.op_type for node in onnx.load(model).graph.node]
    original = onnx.load(fm.digits("mlp"))
    layers = sum(n.op_type in ("Gemm", "MatMul") for n in original.graph.node)
    assert made.count("MatMulInteger") > layers
    metrics = tmp_path / "olive_out" / "metrics.json"
    accuracy = json.loads(metrics.read_text(encoding="utf-8"))["accuracy-accuracy_score"]["value"]
    assert accuracy > 0.97


def test_data_of_olive_and_texts_of_options(tmp_path: Path) -> None:
    out = run(
        """
import json
from pathlib import Path
from olive.hardware import DEFAULT_CPU_ACCELERATOR
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from onnx_lowrank.errors import OptionError
from onnx_lowrank.integrations.olive import LowRank, archive_config, package_config

data = archive_config("digits", "models/digits.npz")
data["load_dataset_config"]["params"]["max_samples"] = 80
given = {"target": ["macs=0.5"], "passes": "svd", "effort": "quick", "threads": 1, "force": True}
model = ONNXModelHandler("models/digits_mlp.onnx")
made = create_pass_from_dict(
    LowRank, {**given, "data_config": data, "report": "r.json"}, disable_search=True
).run(model, "out")
assert Path(made.model_path).name == "model.onnx", made.model_path
print(json.load(open("r.json"))["model"]["after"]["macs"])
config = package_config("package.json")
assert json.load(open("package.json")) == config
assert "onnxdynamicquantization" in {name.lower() for name in config["passes"]}
for wrong, said in (
    ({"calib": "models/digits.npz", "data_config": data}, "at once"),
    ({"metric": "nothing"}, "write file.py:function"),
    ({"target": "macs=2"}, "macs=2"),
):
    try:
        create_pass_from_dict(LowRank, {**given, **wrong}, disable_search=True).run(model, "o2")
    except OptionError as error:
        assert said in str(error), error
    else:
        raise AssertionError(wrong)
""",
        tmp_path,
    )
    assert int(out.splitlines()[-1]) > 0


def test_every_option_is_a_parameter(tmp_path: Path) -> None:
    out = run(
        """
from olive.hardware import DEFAULT_CPU_ACCELERATOR
from onnx_lowrank.engine.options import CompressOptions
from onnx_lowrank.integrations.olive import LowRank
from onnx_lowrank.options import options_of

found = LowRank.default_config(DEFAULT_CPU_ACCELERATOR)
assert set(found) == {*options_of(CompressOptions), "data_config", "report"}
assert all(p.description for p in found.values())
print("same")
""",
        tmp_path,
    )
    assert out.splitlines()[-1] == "same"
