"""What a plan for fewer MACs saves in time, as far as the time model foresees it.

    pays(planned) -> bool

Chains have more nodes than layers, and each node has a cost of its own. In nets of small layers
that may be all that a plan without pruning saves; fewer channels cost nothing. What is foreseen is
the same on all machines.
"""

from __future__ import annotations

from onnx_lowrank.engine.choose import Planned

__all__ = ["foreseen_work", "pays"]

#: part of the MACs saved that must be saved in time too. Of eight nets at 0.7 of their MACs a voice
#: detector alone saves less, 0.04 (and was as slow as before, but 1.2x as fast by pruning); an
#: autoencoder of dense layers saves 0.31, convolutional nets 0.47 to 0.99
PAYS = 0.25


def pays(planned: Planned) -> bool:
    """Whether a plan that takes no channels out saves time for the MACs that it saves."""
    before, after = foreseen_work(planned)
    decisions = planned.plan.decisions
    macs = sum(d.macs_before for d in decisions), sum(d.macs_after for d in decisions)
    if before <= 0 or macs[0] <= 0:
        return True
    return 1 - after / before >= PAYS * (1 - macs[1] / macs[0])


def foreseen_work(planned: Planned) -> tuple[int, int]:
    """The time of all layers whole, and as a plan has them, in MACs that would take as long.

    Layers are those that are left when channels have gone.
    """
    made = {d.layer: (d.method, d.variant, d.rank) for d in planned.plan.decisions}
    before = after = 0
    for choice in planned.proposed.proposals.choices:
        by_form = {(c.method, c.variant, c.rank): c.workload for c in choice.candidates}
        before += choice.keep.workload
        after += by_form.get(made[choice.layer], choice.keep.workload)
    return before, after
