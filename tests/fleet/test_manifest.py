from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from onnx_lowrank.errors import OptionError
from onnx_lowrank.fleet.manifest import of_manifest
from onnx_lowrank.fleet.tasks import Task

SCHEMA = json.loads(
    resources.files("onnx_lowrank.fleet").joinpath("manifest.schema.json").read_text("utf8")
)
ENTRIES: list[dict[str, Any]] = [
    {"model": "a.onnx"},
    {"model": "sub/b.onnx", "calibration": "b.npz", "output": "x\\c.onnx"},
    {"model": "/elsewhere/d.onnx", "calibration": "code.py:feeds",
     "options": {"target": ["macs"], "samples": 9, "metric": "code.py:score",
                 "max_drop": "1", "cache": "kept", "input_shapes": ["x:1,4"], "mean": "1,2,3"}},
    {"model": "../up.ONNX", "options": {"passes": "svd", "samples": None}},
]  # fmt: skip


def read(folder: Path, text: str, **common: Any) -> list[Task]:
    path = folder / "fleet.json"
    path.write_text(text, encoding="utf-8")
    return of_manifest(path, None, common)


@pytest.mark.parametrize("form", ["lines", "list", "indented", "with a mark"])
def test_lines_and_lists_say_the_same(form: str, tmp_path: Path) -> None:
    text = {
        "lines": "\n\n".join(map(json.dumps, ENTRIES)) + "\n",
        "list": json.dumps(ENTRIES),
        "indented": json.dumps(ENTRIES, indent=2) + "\n",
        "with a mark": "\ufeff" + json.dumps(ENTRIES),
    }[form]
    first, second, third, fourth = read(tmp_path, text, target="macs=0.7")
    jsonschema.validate(ENTRIES, SCHEMA, cls=jsonschema.Draft202012Validator)
    assert first == Task("a.onnx", tmp_path / "a.onnx", "a.onnx", None, {"target": "macs=0.7"})
    assert (second.model, second.output) == (tmp_path / "sub/b.onnx", "x/c.onnx")
    assert second.calibration == str(tmp_path / "b.npz")
    assert (third.model, third.output) == (Path("/elsewhere/d.onnx"), "d.onnx")
    assert third.calibration == f"{tmp_path}/code.py:feeds"
    assert third.options == {
        **ENTRIES[2]["options"],
        "metric": f"{tmp_path}/code.py:score",
        "cache": f"{tmp_path}/kept",
    }
    assert fourth.output == "up.onnx"
    assert fourth.options["target"] == "macs=0.7"


def test_the_data_of_all_are_for_those_that_name_none(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"model": "a.onnx"}\n{"model": "b.onnx", "calibration": "b"}')
    tasks = of_manifest(path, "/all.npz", {})
    assert [t.calibration for t in tasks] == ["/all.npz", str(tmp_path / "b")]


WRONG = [
    ({"modle": "b.onnx"}, "there is no 'modle'; an entry has model, calibration"),
    ({"output": "b.onnx"}, "names no model"),
    ({"model": 3}, "model is 3; write a name in quotes"),
    ({"model": " "}, 'model is " "'),
    ({"model": "b.onnx", "calibration": ["x"]}, 'calibration is ["x"]'),
    ({"model": "b.onnx", "output": "../b.onnx"}, "below OUT"),
    ({"model": "b.onnx", "output": "/b.onnx"}, "below OUT"),
    ({"model": "b.onnx", "output": "b.txt"}, "write a name such as folder/net.onnx"),
    ({"model": "b.onnx", "output": ".work/b.onnx"}, "is hidden"),
    ({"model": "b.onnx", "output": "a.onnx"}, "line 1 writes 'a.onnx' too"),
    ({"model": "b.onnx", "options": []}, "options are []"),
    ({"model": "b.onnx", "options": {"calib": "x"}}, "the data stand in calibration"),
    ({"model": "b.onnx", "options": {"scheduler": "a:1"}}, "that of the whole batch"),
    ({"model": "b.onnx", "options": {"sample": 3}}, "did you mean samples?"),
    ({"model": "b.onnx", "options": {"samples": "many"}}, "samples"),
    ({"model": "b.onnx", "options": {"target": "macs=2"}}, "2"),
    ({"model": "b.onnx", "options": {"target": 0.5}}, "cannot be used"),
    ({"model": "b.onnx", "options": {"passes": "no"}}, "no"),
    ({"model": "b.onnx", "options": {"max_drop": "5"}}, "write 5%"),
    ({"model": "b.onnx", "options": {"workers": 3}}, "there is no option 'workers'"),
    ("b.onnx", 'the entry is "b.onnx", not an object'),
    ([], "the entry is [], not an object"),
]


@pytest.mark.parametrize(("entry", "part"), WRONG)
@pytest.mark.parametrize("form", ["lines", "list"])
def test_a_wrong_entry_is_named_by_its_line(
    form: str, entry: Any, part: str, tmp_path: Path
) -> None:
    good, wrong = '{"model": "a.onnx"}', json.dumps(entry)
    text = f"{good}\n\n{wrong}\n" if form == "lines" else f"[{good},\n\n{wrong}]"
    with pytest.raises(OptionError) as caught:
        read(tmp_path, text)
    assert "fleet.json, line 3: " in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"model": "a.onnx"}\n{"model": "b.onnx"', "line 2: not JSON"),
        ('[{"model": "a.onnx"},\n{"model": \n"b.onnx"', "line 3: not JSON"),
        ('{"model": "a.onnx"} {"model": "b.onnx"}', "line 1: more than one entry"),
        ('[{"model": "a.onnx"}\n{"model": "b.onnx"}]', "line 2: expected a comma or ]"),
        ('[{"model": "a.onnx"}', "line 1: expected a comma or ]"),
        ('[{"model": "a.onnx"}]\n3', "goes on after its list"),
        ('\n{"model": "a.onnx", "model": "b.onnx"}', "line 2: 'model' is given twice"),
        ('{"model": "a.onnx", "options": {"min_snr": NaN}}', "line 1: NaN is not a number"),
        ("[" * 100_000, "line 1"),
        ("", "has no entry"),
        ("[]", "has no entry"),
    ],
)
def test_what_is_no_manifest(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        read(tmp_path, text)
    assert part in str(caught.value)
    assert "write objects such as" in str(caught.value) or "given twice" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none: cannot be read \(No such file"):
        of_manifest(tmp_path / "none", None, {})
    (tmp_path / "model").write_bytes(b"\x08\x07\xff\xfe")
    with pytest.raises(OptionError, match="it is not UTF-8 text"):
        of_manifest(tmp_path / "model", None, {})


def test_the_schema_refuses_what_the_reader_does() -> None:
    """As far as a schema can: it knows no options, and not the entries beside."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for entry, _ in WRONG[:8]:
        if entry not in (WRONG[3][0], WRONG[5][0], WRONG[6][0]):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate([entry], SCHEMA, cls=jsonschema.Draft202012Validator)
