"""Plan again, with the layers weighed by how much of their errors reaches the outputs.

Each round builds the best plan so far, measures the weights around it
(:mod:`onnx_lowrank.refit.sensitivity`) and plans by them. The new plan is built where it foresees
less
loss, and takes the place of the old where its outputs are nearer to the original's on samples that
neither was fitted to; the first that is not ends the rounds.
"""

from __future__ import annotations

from onnx_lowrank.analysis.collect import batch_size
from onnx_lowrank.analysis.preparation import MEMORY
from onnx_lowrank.engine.plan_checks import kept_by
from onnx_lowrank.engine.run import Built, Run
from onnx_lowrank.engine.timed_plan import timed_plan
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.requirement import Requirement
from onnx_lowrank.option_values import check_count
from onnx_lowrank.planning.planned import Planned
from onnx_lowrank.planning.refit_modes import SOLVES_LAYERS
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.refit.sensitivity import measured_factors
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["weighed_plan"]

_SNR = Requirement("snr", 0.0)

#: parameters of a model whose layers are weighed unasked: their solved weights are kept meanwhile
LARGEST = MEMORY // 8

#: a plan made again is built where it foresees less of the weighted loss than this part
WORTH = 0.95


def weighed_plan(run: Run, target: Target, rounds: int | None) -> tuple[Planned, Built | None]:
    """The best of a plan with equal weights and of ``rounds`` with measured ones.

    Its model comes with it where rounds had to build it.

    Args:
        run: model, passes and data.
        target: what is asked for.
        rounds: at the most; None for one where layers can be weighed, at little memory.

    Raises:
        OptionError: the repair solves no whole layers, or ranks are given by a rule.
        BudgetError: the target is out of reach.
        DataError: no output is of floating point.
    """
    if rounds is not None:
        check_count("rounds", rounds, least=0)
    weighable = run.repair in SOLVES_LAYERS and target.rule is None
    if rounds and not weighable:
        raise OptionError(
            f"rounds weigh the layers of a plan as they are repaired; give --repair "
            f"{' or '.join(SOLVES_LAYERS)} and no rule for ranks"
        )
    best = timed_plan(run, target)
    data, taken_apart = run.data.calibration, sum(bool(d.method) for d in best.plan.decisions)
    unasked = weighable and taken_apart > 1 and run.before.parameters <= LARGEST
    most = int(unasked) if rounds is None else rounds
    if not most or data is None:
        return best, None
    try:
        return _Rounds(run, target, data).best_of(best, most)
    except DataError:  # no outputs that layers could be weighed by
        if rounds is None:
            return best, None
        raise


class _Rounds:
    """Plans of one run, compared on half of the samples that none was fitted to."""

    def __init__(self, run: Run, target: Target, data: Dataset) -> None:
        self._run, self._target, self._data = run, target, data
        shapes = run.prepared.shapes
        self._size = batch_size(list(shapes), shapes, MEMORY)
        held = run.data.validation
        self._held = held.subset(range(0, len(held), 2))
        self._judge = Judge(run.source, self._held, run.runtime, _SNR, self._size)

    def best_of(self, best: Planned, rounds: int) -> tuple[Planned, Built]:
        """``best``, or the last of the plans made after it that was better, and its model."""
        run, notes = self._run, []
        built = run.build(best.plan, keep_repaired=True)
        score = self._judge.score(built.model).value
        for number in range(1, rounds + 1):
            said = f"round {number} with measured weights:"
            again = timed_plan(run, self._target, self._weights(best, built))
            same = again.plan.decisions == best.plan.decisions
            if same or not again.loss(again.weights) < WORTH * best.loss(again.weights):
                notes.append(f"{said} {'the same plan' if same else 'no better plan'}")
                break
            other = run.build(again.plan, keep_repaired=number < rounds)
            reached = self._judge.score(other.model).value
            better = reached > score
            notes.append(
                f"{said} {score:.2f} to {reached:.2f} dB on {len(self._held)} held-out samples, "
                f"{'kept' if better else 'dropped'}"
            )
            if not better:
                break
            best, built, score = again, other, reached
        return best.noting(*notes), built

    def _weights(self, planned: Planned, built: Built) -> dict[str, float]:
        """Factors measured around a plan; those around a second one are taken half way."""
        run = self._run
        work = run.cut(kept_by(planned.plan))[0].model
        with run.clock("weigh"):
            found = measured_factors(
                run.source, work, built.repaired, planned.errors, self._data, run.runtime,
                self._size, run.progress,
            )  # fmt: skip
        return {n: (f * planned.weights.get(n, f)) ** 0.5 for n, f in found.items()}
