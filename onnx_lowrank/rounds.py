"""Plan again, with the layers weighed by how much of their errors reaches the outputs.

Each round builds the best plan so far, measures the weights around it
(:mod:`onnx_lowrank.layer_weights`) and plans by them. The new plan takes the place of the old where
its outputs are nearer to the original's on samples that neither was fitted to; the first that is
not ends the rounds.
"""

from __future__ import annotations

from onnx_lowrank.collect import batch_size
from onnx_lowrank.errors import OptionError
from onnx_lowrank.judge import Judge
from onnx_lowrank.layer_weights import measured_factors
from onnx_lowrank.plan import Plan
from onnx_lowrank.preparation import MEMORY
from onnx_lowrank.repairs import SOLVES_LAYERS
from onnx_lowrank.requirement import Requirement
from onnx_lowrank.run import Built, Run
from onnx_lowrank.targets import Target
from onnx_lowrank.timed_plan import timed_plan

__all__ = ["weighed_plan"]

_SNR = Requirement("snr", 0.0)


def weighed_plan(run: Run, target: Target, rounds: int) -> tuple[Plan, Built | None]:
    """The best of a plan with equal weights and of ``rounds`` with measured ones.

    Its model comes with it where rounds had to build it.

    Args:
        run: model, passes and data.
        target: what is asked for.
        rounds: at the most.

    Raises:
        OptionError: the repair solves no whole layers, or ranks are given by a rule.
        BudgetError: the target is out of reach.
        DataError: no output is of floating point.
    """
    if rounds < 0:
        raise OptionError(f"{rounds} rounds; give 0 or more")
    if rounds and (run.repair not in SOLVES_LAYERS or target.rule is not None):
        raise OptionError(
            f"rounds weigh the layers of a plan as they are repaired; give --repair "
            f"{' or '.join(SOLVES_LAYERS)} and no rule for ranks"
        )
    best = timed_plan(run, target)
    data = run.data.calibration
    if not rounds or data is None:
        return best, None
    shapes = run.prepared.shapes
    size = batch_size(list(shapes), shapes, MEMORY)
    held = run.data.validation
    judge = Judge(run.source, held.subset(range(0, len(held), 2)), run.runtime, _SNR, size)
    built = run.build(best, keep_repaired=True)
    score, notes = judge.score(built.model).value, []
    for number in range(1, rounds + 1):
        weights = {c.layer: c.weight for c in run.choices}
        errors = {d.layer: weights[d.layer] * d.error for d in best.decisions if d.method}
        with run.clock("weigh"):
            factors = measured_factors(
                run.source, run.planned_model(best), built.repaired, errors, data, run.runtime,
                size, run.progress,
            )  # fmt: skip
        before = run.factors
        # later ones are measured around another plan: half way there
        run.factors = {n: (f * before.get(n, f)) ** 0.5 for n, f in factors.items()}
        again = timed_plan(run, target)
        if again.decisions == best.decisions:
            notes.append(f"round {number} with measured weights: the same plan")
            break
        other = run.build(again, keep_repaired=number < rounds)
        reached = judge.score(other.model).value
        better = reached > score
        notes.append(
            f"round {number} with measured weights: {score:.2f} to {reached:.2f} dB on "
            f"{(len(held) + 1) // 2} held-out samples, {'kept' if better else 'dropped'}"
        )
        if not better:
            run.factors = before
            break
        best, built, score = again, other, reached
    for note in notes:
        run.note(best, note)
    return best, built
