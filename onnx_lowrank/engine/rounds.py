"""Plan again, with the layers weighed by how much of their errors reaches the outputs.

Each round builds the best plan so far, measures sensitivities around it
(:mod:`onnx_lowrank.refit.sensitivity`) and plans by them. The new plan is built where it promises
less loss, and takes the place of the old where its outputs are nearer to the original's on samples
that neither was fitted to; the first that is not ends the rounds.
"""

from __future__ import annotations

from onnx_lowrank.analysis.collect import batch_size
from onnx_lowrank.analysis.preparation import MEMORY
from onnx_lowrank.engine.analyse import Analysis
from onnx_lowrank.engine.build import Built, build
from onnx_lowrank.engine.choose import Planned
from onnx_lowrank.engine.timed_plan import plan_for
from onnx_lowrank.errors import DataError, OptionError
from onnx_lowrank.judge.judge import Judge
from onnx_lowrank.judge.requirement import Requirement
from onnx_lowrank.option_values import check_count
from onnx_lowrank.planning.notes import Note, Round
from onnx_lowrank.planning.refit_modes import SOLVES_LAYERS
from onnx_lowrank.planning.targets import Target
from onnx_lowrank.refit.sensitivity import measured_factors
from onnx_lowrank.samples.dataset import Dataset

__all__ = ["plan_in_rounds"]

_SNR = Requirement("snr", 0.0)

#: parameters of a model whose layers are weighed unasked: their solved weights are kept meanwhile
LARGEST = MEMORY // 8

#: a plan made again is built where it foresees less of the weighted loss than this part
WORTH = 0.95


def plan_in_rounds(
    analysis: Analysis, target: Target, rounds: int | None
) -> tuple[Planned, Built | None]:
    """The best of a plan with equal weights and of ``rounds`` with measured sensitivities.

    Its model comes with it where rounds had to build it.

    Args:
        analysis: of the original model.
        target: what is asked for.
        rounds: at the most; None for one where layers can be weighed, at little memory.

    Raises:
        OptionError: the repair solves no whole layers, or ranks are given by a rule.
        BudgetError: the target is out of reach.
        DataError: no output is of floating point.
    """
    if rounds is not None:
        check_count("rounds", rounds, least=0)
    weighable = analysis.job.options.repair in SOLVES_LAYERS and target.rule is None
    if rounds and not weighable:
        raise OptionError(
            f"rounds weigh the layers of a plan as they are repaired; give --repair "
            f"{' or '.join(SOLVES_LAYERS)} and no rule for ranks"
        )
    first = plan_for(analysis, target)
    data, taken_apart = analysis.job.samples.calibration, len(first.errors)
    unasked = weighable and taken_apart > 1 and analysis.before.parameters <= LARGEST
    most = int(unasked) if rounds is None else rounds
    if not most or data is None:
        return first, None
    size = batch_size(list(analysis.prepared.shapes), analysis.prepared.shapes, MEMORY)
    held = analysis.job.samples.validation
    held = held.subset(range(0, len(held), 2))
    try:
        judge = Judge(analysis.job.source, held, analysis.job.tools.runtime, _SNR, size)
        return _best(analysis, target, first, most, judge, data, size)
    except DataError:  # no outputs that layers could be weighed by
        if rounds is None:
            return first, None
        raise


def _best(
    analysis: Analysis,
    target: Target,
    best: Planned,
    rounds: int,
    judge: Judge,
    data: Dataset,
    size: int,
) -> tuple[Planned, Built]:
    """``best``, or the last of the plans made after it that was better, and its model."""
    notes: list[Note] = []
    built = build(analysis, best.plan, keep_repaired=True)
    score = judge.score(built.model).value
    for number in range(1, rounds + 1):
        sensitivity = _measured(analysis, best, built, data, size)
        again = plan_for(analysis, target, sensitivity)
        same = again.plan.decisions == best.plan.decisions
        if same or not again.loss(sensitivity) < WORTH * best.loss(sensitivity):
            notes.append(Round(number, "same" if same else "no better"))
            break
        other = build(analysis, again.plan, keep_repaired=number < rounds)
        reached = judge.score(other.model)
        better = reached.value > score
        outcome = "kept" if better else "dropped"
        notes.append(Round(number, outcome, score, reached.value, reached.samples))
        if not better:
            break
        best, built, score = again, other, reached.value
    return best.noting(*notes), built


def _measured(
    analysis: Analysis, planned: Planned, built: Built, data: Dataset, size: int
) -> dict[str, float]:
    """Sensitivities measured around a plan; those around a second one are taken half way."""
    job = analysis.job
    with job.tools.stopwatch("weigh"):
        found = measured_factors(
            job.source, planned.proposed.cut.work.model, built.repaired, planned.errors, data,
            job.tools.runtime, size, job.tools.progress,
        )  # fmt: skip
    return {n: (f * planned.sensitivity.get(n, f)) ** 0.5 for n, f in found.items()}
