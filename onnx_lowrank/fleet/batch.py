"""Many models, each compressed on its own: what was done is kept, and what fails stops nothing.

The way of a batch::

    tasks   = of_folder(...) | of_manifest(...)    # models, data, options, names of results
    journal = Journal(out)                         # what has been done before
    orders  = those of tasks that are not settled  # by digests of model, data and options
    for order, ... in run_here(orders, ...):       # or on Dask; each in a process, within limits
        put in place, append to the journal        # by this process alone
    summary.json, summary.html
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.fleet.digests import data_digest, key_of, model_digest
from onnx_lowrank.fleet.journal import Entry, Journal
from onnx_lowrank.fleet.local import cores, run_here
from onnx_lowrank.fleet.manifest import of_manifest
from onnx_lowrank.fleet.options import BatchOptions, FleetOptions
from onnx_lowrank.fleet.outcome import CRASH, INTERNAL, Outcome
from onnx_lowrank.fleet.places import Places
from onnx_lowrank.fleet.summary import SUMMARY, summary_of, write_summary
from onnx_lowrank.fleet.tasks import Task, anchored, check_options, names_code, of_folder
from onnx_lowrank.fleet.worker import Order
from onnx_lowrank.options import documented, from_keywords, options_of

__all__ = ["Batch", "Standing", "batch"]


@dataclass(frozen=True)
class Standing:
    """How far a batch is.

    Attributes:
        total: number of models.
        done: those that need no more work, failures included.
        failed: those that failed.
        resumed: those of :attr:`done` that an earlier run had settled.
    """

    total: int
    done: int
    failed: int
    resumed: int


@dataclass(frozen=True)
class Batch:
    """What became of all models.

    Attributes:
        folder: the folder of results.
        summary: as ``summary.json`` has it.
    """

    folder: Path
    summary: Mapping[str, Any]

    @property
    def failed(self) -> int:
        """Number of models that failed."""
        return int(self.summary["counts"]["failed"])

    @property
    def page(self) -> Path:
        """Path of the summary as a page."""
        return self.folder / f"{SUMMARY}.html"


@documented(BatchOptions)
def batch(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    told: Callable[[Standing], None] = lambda _: None,
    command: str = "",
    **keywords: Any,
) -> Batch:
    """Compress all models of a folder or manifest, each in a process of its own.

    Results, receipts, ``journal.jsonl``, ``summary.json`` and ``summary.html`` go into ``out``.
    The same call again does what is left, and what has changed. A model that fails is recorded with
    its reason, and the others go on.

    Args:
        source: a folder, of which every ``.onnx`` is taken, or a manifest (JSON Lines or JSON).
        out: the folder of results; it is made where it is not there.
        told: called as models are settled.
        command: that receipts and the summary name.
        **keywords: options by name, all of them text, numbers, lists or mappings:
            {options}

    Returns:
        What became of each model; nothing is raised for those that failed.

    Raises:
        OptionError: options or the manifest make no sense, or ``out`` cannot be used.
        DataError: the data of all models is not there.
        BatchError: the scheduler cannot be reached any more.
    """
    names = options_of(FleetOptions)
    fleet = from_keywords(FleetOptions, {k: v for k, v in keywords.items() if k in names})
    given = _plain({k: v for k, v in keywords.items() if k not in names})
    calibration = _data(given.pop("calib", None))
    check_options(given)
    options = anchored(given, Path())
    results = Path(out)
    path = Path(source)
    if path.is_dir():
        tasks = of_folder(path, results, calibration, options)
    else:
        tasks = of_manifest(path, calibration, options)
    _check(tasks, results)
    places = Places(results)
    with Journal(results) as journal:
        run = _Run(tasks, places, journal, fleet, told, command)
        begun = time.monotonic()
        try:
            run.go()
        finally:  # also of what an interrupted run has done
            places.clear()
            made = summary_of(tasks, run.settled, fleet, options, command)
            made["seconds"] = time.monotonic() - begun
            write_summary(results, made)
    return Batch(results, made)


@dataclass
class _Run:
    """A run over the tasks of a batch.

    Attributes:
        tasks: all tasks.
        places: where results go.
        journal: what has been done, and is.
        fleet: how it is run.
        told: called as models are settled.
        command: that receipts name.
        settled: the entry of each task that needs no more work, by the name of its result.
    """

    tasks: list[Task]
    places: Places
    journal: Journal
    fleet: FleetOptions
    told: Callable[[Standing], None]
    command: str
    settled: dict[str, Entry] = field(default_factory=dict)
    _resumed: int = 0
    _failed: int = 0
    _begun: dict[str, tuple[Task, Entry]] = field(default_factory=dict)

    def go(self) -> None:
        """Settle every task."""
        self.places.clear()
        self._tell()
        limits = self.fleet.limits()
        if self.fleet.scheduler is None:
            outcomes = run_here(self._orders(), limits, self.fleet.workers)
        else:
            from onnx_lowrank.fleet.dask import run_on  # an extra

            outcomes = run_on(self.fleet.scheduler, self._orders(), limits)
        with closing(outcomes):
            for order, folder, outcome in outcomes:
                self._settle(order, folder, outcome)

    def _orders(self) -> Iterator[Order]:
        """Orders of the tasks that are not settled; digests are taken as each one's turn comes."""
        threads = 0 if self.fleet.scheduler else max(1, cores() // self.fleet.workers)
        for task in self.tasks:
            entry = self._entry(task)
            known = self.journal.latest(task.output)
            if known is not None and known.key == entry.key and self._stands(known):
                self._resumed += 1
                self._note(known)
                continue
            folder = str(self.places.folder().absolute())
            self._begun[folder] = task, entry
            name = Path(task.output).name
            yield Order(
                str(task.model), name, task.calibration, task.options, folder, threads, self.command
            )

    def _entry(self, task: Task) -> Entry:
        """The entry of a task before it is carried out."""
        digests = {"model": model_digest(task.model), "data": data_digest(task.calibration)}
        key = key_of(task, digests["model"], digests["data"])
        return Entry(
            key, str(task.model), task.output, digests, task.calibration, Outcome("pending"), ""
        )

    def _stands(self, entry: Entry) -> bool:
        """Whether an earlier entry of the same key settles its task."""
        if entry.outcome.failed:
            return not self.fleet.retry_failed
        return self.places.whole(entry.files)

    def _settle(self, order: Order, folder: Path, outcome: Outcome) -> None:
        """Put a result in its place, then say so in the journal."""
        task, entry = self._begun.pop(order.folder)
        before = self.journal.latest(task.output)
        if before is not None:  # what lies there was made from something else, or has failed
            self.places.remove(before.files)
        log = ""
        if not outcome.failed:
            self.places.put(folder, task.output, outcome.files)
        elif outcome.cause in (CRASH, INTERNAL):
            log = self.places.keep_log(folder, task.output)
        again = before is not None and before.key == entry.key
        made = Entry(
            entry.key,
            entry.model,
            entry.output,
            entry.digests,
            entry.calibration,
            outcome,
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
            attempts=1 + (before.attempts if before is not None and again else 0),
            log=log,
        )
        self.journal.append(made)
        self.places.drop(Path(order.folder))
        self._note(made)

    def _note(self, entry: Entry) -> None:
        self.settled[entry.output] = entry
        self._failed += entry.outcome.failed
        self._tell()

    def _tell(self) -> None:
        self.told(Standing(len(self.tasks), len(self.settled), self._failed, self._resumed))


def _plain(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them, as they go to other processes."""
    found = {}
    for name, value in keywords.items():
        path = isinstance(value, os.PathLike)
        try:
            found[name] = json.loads(json.dumps(os.fspath(value) if path else value))
        except (TypeError, ValueError):
            raise OptionError(
                f"option {name} is {type(value).__name__}, and a batch runs in other processes; "
                "write it as on the command line, a function of yours as file.py:function"
            ) from None
    return found


def _data(named: Any) -> str | None:
    """Absolute path of the data of all models.

    Raises:
        OptionError: it is not a name.
        DataError: there is no such file.
    """
    if named is None:
        return None
    if not isinstance(named, str):
        raise OptionError("calib of a batch is a path or file.py:function; save the arrays first")
    if not names_code(named) and not Path(named).exists():
        raise DataError(f"{named}: no such file or folder; check the path")
    return str(Path(named).absolute())


def _check(tasks: list[Task], out: Path) -> None:
    """Refuse results that would lie on one another, or on a model or its data.

    Raises:
        OptionError: as said.
    """
    results = out.resolve()
    outputs = {task.output for task in tasks}
    first: dict[str, Task] = {}
    for task in tasks:
        known = first.setdefault(task.output, task)
        if known is not task:
            raise OptionError(
                f"{known.name} and {task.name} would both be {task.output!r}; rename one, or name "
                "outputs in a manifest"
            )
        if any(part.as_posix() in outputs for part in Path(task.output).parents):
            raise OptionError(
                f"{task.output!r} lies below another result of that name; name another output"
            )
        for file in (str(task.model), task.calibration):
            if file is not None and Path(file).resolve().is_relative_to(results):
                raise OptionError(
                    f"{file} lies in the folder of results, {out}; name another folder"
                )
