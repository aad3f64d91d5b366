"""``python -m benchmarks.pruning``: what pruning costs and brings, alone and with factorization.

- ``mnist``: parameters left against error, alone and together, and with fewer samples;
- ``chains``: in which order channels are chosen, by what, and how weights are mended;
- ``cifar``: five nets to a part of their MACs, with and without pruning, by the clock;
- ``rivals``: the same nets pruned by onnxsim, in an interpreter that has it (``--onnxsim``), and
  by its rule, the L2 norm of the filters, from our pass.

Rows go into one JSON file; rows that are there already are measured again only with ``--again``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.pruning_cells import NETS, PARTS, Cell, cells
from benchmarks.pruning_measure import measure
from benchmarks.pruning_tables import HEADER, Row, line, picture
from benchmarks.rows import head, known_rows, write_rows

__all__ = ["measured", "parser"]

#: parts whose results are timed
_TIMED = ("cifar", "rivals")


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.pruning", description=__doc__)
    made.add_argument("--part", nargs="+", default=list(PARTS), choices=PARTS)
    made.add_argument("--models", nargs="+", default=list(NETS), choices=NETS)
    made.add_argument("--ways", nargs="+", help="only the cells of these names")
    made.add_argument("--targets", nargs="+", help="only the cells of these budgets: macs=0.5")
    made.add_argument("--seconds", type=float, default=2.0, help="for each timing")
    made.add_argument("--onnxsim", metavar="PYTHON", help="an interpreter that has onnxsim")
    made.add_argument("--again", action="store_true", help="measure what has been measured")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results/pruning.json"))
    made.add_argument("--picture", type=Path, default=Path("benchmarks/results/pruning.svg"))
    return made


def main() -> None:
    """Measure what the arguments name."""
    arguments = parser().parse_args()
    rows: dict[str, Row] = known_rows(arguments.out)
    for part in arguments.part:
        print(f"\n{part}\n\n{head(HEADER)}")
        for model in arguments.models:
            asked = cells(part, model, arguments.ways, arguments.targets)
            if asked and not NETS[model].path.is_file():
                print(f"| {model} | not at hand |")
                continue
            known = {} if arguments.again else rows
            seconds = arguments.seconds if part in _TIMED else 0.0
            for row in measured(asked, known, arguments.onnxsim, seconds):
                rows[Cell.key_of(row)] = row
                write_rows(arguments.out, rows)
                print(line(row), flush=True)
    chains = [r for r in rows.values() if r["part"] == "chains"]
    if chains:
        picture(arguments.picture, chains)


def measured(
    asked: Sequence[Cell], known: Mapping[str, Row], peer: str | None, seconds: float
) -> Iterator[Row]:
    """Rows of cells of one model, in order: those that are known, the others measured."""
    with TemporaryDirectory() as folder:
        archive = Path(folder) / "samples.npz"
        for cell in asked:
            if cell.key in known:
                yield known[cell.key]
                continue
            benchmark = NETS[cell.model]
            if not archive.is_file():
                np.savez(archive, **benchmark.read())  # type: ignore[arg-type]
            yield measure(cell, benchmark, archive, Path(folder), peer, seconds)


if __name__ == "__main__":
    main()
