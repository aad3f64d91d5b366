"""What each command does: its options to a library call, its result to tables and files."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from onnx_lowrank.cli.options import GateOptions
from onnx_lowrank.cli.progress import progress_of, steps_of
from onnx_lowrank.engine.api import Result, apply, compress, plan, sweep
from onnx_lowrank.engine.curves import curves
from onnx_lowrank.engine.inspection import inspect
from onnx_lowrank.engine.options import (
    ApplyOptions,
    CompressOptions,
    CurvesOptions,
    PlanOptions,
    SweepOptions,
    ValidateOptions,
)
from onnx_lowrank.engine.select import SelectOptions, check_archive, select
from onnx_lowrank.engine.validate import beyond, opened
from onnx_lowrank.errors import BudgetError, OptionError, ValidationError
from onnx_lowrank.judge.requirement import largest_loss
from onnx_lowrank.modelfile.atomic_files import atomic_write
from onnx_lowrank.modelfile.loading import load
from onnx_lowrank.modelfile.saving import check_output
from onnx_lowrank.options import flag_of, from_keywords, keywords_from, options_of
from onnx_lowrank.planning.plan import Plan
from onnx_lowrank.planning.registry import available, pass_class
from onnx_lowrank.report.check import as_text
from onnx_lowrank.report.plan_summary import print_summary
from onnx_lowrank.report.plots import check_picture
from onnx_lowrank.report.report import outputs_table
from onnx_lowrank.report.sweep import Sweep

__all__ = [
    "run_apply",
    "run_compress",
    "run_explain",
    "run_inspect",
    "run_passes",
    "run_plan",
    "run_select",
    "run_sweep",
    "run_validate",
]


def run_compress(a: argparse.Namespace, out: Console) -> int:
    """Make a smaller model and write it, with its plan and report where asked."""
    source = load(a.model)
    check_output(a.output, source, keep=[a.calib])
    for extra, others in ((a.report, ()), (a.plan, (a.report,))):
        if extra:
            check_output(extra, source, keep=[a.calib, a.output, *others])
    keywords = keywords_from(CompressOptions, a)
    steps = steps_of(from_keywords(CompressOptions, keywords))
    with progress_of(a.quiet, steps) as progress:
        result = compress(source, progress=progress, timer=a.timer, **keywords)
        written = result.save(a.output)
    if a.plan:
        _write_text(a.plan, result.plan.to_json())
    return _finish(a, out, result, written)


def run_plan(a: argparse.Namespace, out: Console) -> int:
    """Write what compress would do."""
    source = load(a.model)
    check_output(a.plan, source, keep=[a.calib])
    keywords = keywords_from(PlanOptions, a)
    with progress_of(a.quiet, steps_of(from_keywords(PlanOptions, keywords))) as progress:
        made = plan(source, progress=progress, timer=a.timer, **keywords)
    _write_text(a.plan, made.to_json())
    if not a.quiet:
        print_summary(made, out)
        out.print(f"wrote {a.plan}", markup=False)
    return 0


def run_apply(a: argparse.Namespace, out: Console) -> int:
    """Do what a plan says."""
    source, decided = load(a.model), Plan.load(a.plan)
    check_output(a.output, source, keep=[a.calib, a.plan])
    if a.report:
        check_output(a.report, source, keep=[a.calib, a.plan, a.output])
    keywords = keywords_from(ApplyOptions, a)
    with progress_of(a.quiet) as progress:
        result = apply(source, decided, progress=progress, timer=a.timer, **keywords)
        written = result.save(a.output)
    return _finish(a, out, result, written)


def run_sweep(a: argparse.Namespace, out: Console) -> int:
    """Try many budgets."""
    source = load(a.model)
    if a.plot:
        check_output(check_picture(a.plot), source, keep=[a.calib])
    if a.report:
        check_output(a.report, source, keep=[a.calib, a.plot])
    keywords = keywords_from(SweepOptions, a)
    with progress_of(a.quiet) as progress:
        found = sweep(source, progress=progress, timer=a.timer, **keywords)
    if not found.points:
        raise BudgetError(found.missed[0][1])
    if a.report:
        _write_sweep(a.report, found, _command(a))
    if a.plot:
        found.plot(a.plot)
    if not a.quiet:
        found.print(out)
        for written in (a.models, a.report, a.plot):
            if written:
                out.print(f"wrote {written}", markup=False)
    return 0


def run_inspect(a: argparse.Namespace, out: Console) -> int:
    """List layers and costs, or the curves of error against MACs."""
    keywords = keywords_from(CurvesOptions, a)
    if a.curves:
        if a.every_layer:
            raise OptionError("--all goes without --curves, which has a row for every layer anyway")
        return _curves(a, keywords, out)
    known = options_of(CurvesOptions)
    given = [flag_of(known[name][1]) for name in keywords if name != "input_shapes"]
    if a.plot:
        given.append("--plot")
    if given:
        raise OptionError(f"{given[0]} goes with --curves")
    inspection = inspect(a.model, input_shapes=keywords.get("input_shapes", {}))
    if a.json:
        _print_json(inspection.to_dict())
    elif not a.quiet:
        inspection.print(out, every=a.every_layer)
    return 0


def run_validate(a: argparse.Namespace, out: Console) -> int:
    """Compare two models, and fail where too much was lost."""
    limit = GateOptions(max_drop=a.max_drop).limit()
    keywords = keywords_from(ValidateOptions, a)
    pair = opened(a.reference, a.new, a.data, keywords)
    if a.report:
        check_output(a.report, pair.models[0], keep=[a.new, a.data])
    try:
        with progress_of(a.quiet) as progress:
            checks = pair.compared(progress)
    except ValidationError as error:
        if a.report:
            _write_report(a.report, pair.check(None, limit, str(error)).to_dict(_command(a)))
        raise
    if a.json:
        _print_json(checks.to_dict())
    elif not a.quiet:
        out.print(outputs_table(checks))
        if checks.accuracy is not None:
            accuracy = checks.accuracy
            out.print(
                f"top-1 of {accuracy.samples} samples: {accuracy.reference:.2%} -> "
                f"{accuracy.new:.2%} ({0.0 - 100 * accuracy.drop:+.2f} points)"
            )
        for note in checks.notes:
            out.print(Text(f"note: {note}", style="yellow"))
    if limit is not None and not (a.json or a.quiet):
        out.print(largest_loss(limit, labelled=checks.accuracy is not None))
    failed = beyond(checks, limit)
    if a.report:
        _write_report(a.report, pair.check(checks, limit, failed, a.timer).to_dict(_command(a)))
    if failed:
        raise ValidationError(failed)
    return 0


def run_select(a: argparse.Namespace, out: Console) -> int:
    """Choose samples and write them."""
    source = None if a.model is None else load(a.model)
    check_output(check_archive(a.output), source, keep=[a.data])
    keywords = keywords_from(SelectOptions, a)
    with progress_of(a.quiet) as progress:
        chosen = select(a.data, model=source, progress=progress, **keywords)
        chosen.save(a.output)
    if a.json:
        _print_json(chosen.to_dict())
    elif not a.quiet:
        for said in chosen.said:
            out.print(said, markup=False)
        out.print(f"their numbers: {', '.join(map(str, chosen.indices))}", markup=False)
        out.print(f"wrote {a.output}", markup=False)
    return 0


def run_passes(a: argparse.Namespace, out: Console) -> int:
    """List the passes."""
    del a
    for name, cls in available().items():
        first = (cls.explain().splitlines() or [""])[0]
        out.print(first if first.startswith(name) else f"{name}: {first}", markup=False)
    return 0


def run_explain(a: argparse.Namespace, out: Console) -> int:
    """Say what a pass does."""
    out.print(pass_class(a.name).explain(), markup=False)
    return 0


def _curves(a: argparse.Namespace, keywords: dict[str, Any], out: Console) -> int:
    source = load(a.model)
    if a.json and a.plot:
        raise OptionError("--json and --plot at once; give one of them")
    if a.plot:
        check_output(check_picture(a.plot), source)
    with progress_of(a.quiet) as progress:
        found = curves(source, progress=progress, **keywords)
    if a.json:
        _print_json(found.to_dict())
    elif a.plot:
        found.plot(a.plot)
        if not a.quiet:
            found.print_notes(out)
            out.print(f"wrote {a.plot}", markup=False)
    elif not a.quiet:
        found.print(out)
    return 0


def _finish(a: argparse.Namespace, out: Console, result: Result, written: int) -> int:
    if a.report:
        _write_report(a.report, result.report.to_dict(_command(a)))
    if not a.quiet:
        result.report.print(out)
        out.print(f"wrote {a.output}, {written:,} bytes")
    return 0


def _command(a: argparse.Namespace) -> str:
    """The command as it was given."""
    return shlex.join(["onnx-lowrank", *a.given])


def _write_report(path: str, data: dict[str, Any]) -> None:
    """Write a report, as a page where the name says so, else as JSON."""
    if not _is_page(path):
        _write_text(path, as_text(data))
        return
    from onnx_lowrank.report.page import page  # templates take a tenth of a second

    _write_text(path, page(data))


def _write_sweep(path: str, found: Sweep, command: str) -> None:
    """Write a sweep, as a page where the name says so, else as JSON."""
    if not _is_page(path):
        _write_text(path, as_text(found.to_dict(command)))
        return
    from onnx_lowrank.report.sweep_page import sweep_page  # as above

    _write_text(path, sweep_page(found, command))


def _is_page(path: str) -> bool:
    return Path(path).suffix.lower() in (".html", ".htm")


def _write_text(path: str, text: str) -> None:
    with atomic_write(Path(path)) as file:
        file.write(text.encode() + b"\n")


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=1, allow_nan=False))
