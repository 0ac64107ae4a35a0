"""Which strategy to take, and which comes second: by the estimated step, free memory, and how even the ranks are."""

from collections.abc import Sequence
from dataclasses import dataclass

from stem_torchrec.sharding.plan import imbalance

from planning.step import Step
from planning.strategies import Planned

CLOSE = 1.25
"""Room is worth a step of up to so many times the shortest; the estimate is no more exact than that."""
FULL = 0.8
"""A rank that is fuller leaves too little room for larger tables or batches."""
UNEVEN, HALF_FULL = 1.5, 0.4
"""A rank with so many times the mean memory is the first to overflow, if it is at least so full."""


@dataclass(frozen=True)
class Candidate:
    """A plan that fits, with the estimate of its step."""

    planned: Planned
    step: Step

    @property
    def imbalance(self) -> float:
        """Weights of the rank that has the most, over the mean."""
        assert self.planned.plan is not None
        return imbalance(self.planned.plan.per_rank("weights"))

    @property
    def crowded(self) -> str:
        """Why a rank may run out of memory soon; empty if none does."""
        if self.step.fill > FULL:
            return f"its fullest rank uses {self.step.fill:.0%} of the memory for tables"
        if self.imbalance > UNEVEN and self.step.fill > HALF_FULL:
            return f"its fullest rank has {self.imbalance:.1f} times the mean of the ranks"
        return ""


@dataclass(frozen=True)
class Advice:
    """The strategy to take for one number of hosts."""

    best: Candidate
    runner_up: Candidate | None
    reason: str
    """Why the runner-up comes second; empty without one."""


def advise(candidates: Sequence[Candidate]) -> Advice | None:
    """The strategy to take among those of one number of hosts, and the runner-up; None if no plan can be taken.

    Of the strategies whose step is up to 25 % longer than the shortest, those without a crowded rank come first, then
    the shorter step, then a single type before auto. Strategies that cut rows which the optimizer needs whole are left
    out. If a rank of the best is crowded, the runner-up is the best one with room.
    """
    able = [each for each in candidates if not each.planned.cut_rows]
    if not able:
        return None
    best, *others = _ranked(able)
    # A mix that is the same as a single type is no alternative.
    others = [each for each in others if _tables(each) != _tables(best)]
    with_room = [each for each in others if best.crowded and not each.crowded]
    runner_up = next(iter(with_room or others), None)
    return Advice(best, runner_up, _reason(best, runner_up) if runner_up else "")


def cheapest(advised: Sequence[Advice]) -> Advice | None:
    """The number of hosts to take: the one with the fewest rank hours per sample, which has the shortest step.

    Room counts as in `advise`; of steps that are equal within 1 % it is the smallest. None if no plan fits.
    """
    by_best = {id(each.best): each for each in advised}
    ranked = _ranked([each.best for each in advised])
    equal = [
        each
        for each in ranked
        if each.step.ms <= 1.01 * ranked[0].step.ms and bool(each.crowded) == bool(ranked[0].crowded)
    ]
    return by_best[id(min(equal, key=lambda each: each.planned.nodes))] if equal else None


def _ranked(candidates: Sequence[Candidate]) -> list[Candidate]:
    shortest = min((each.step.ms for each in candidates), default=0.0)

    def rank(each: Candidate) -> tuple:
        late = each.step.ms > CLOSE * shortest
        return late, not late and bool(each.crowded), each.step.ms, each.planned.strategy.type == "auto"

    return sorted(candidates, key=rank)


def _reason(best: Candidate, second: Candidate) -> str:
    difference = second.step.ms / best.step.ms - 1
    if difference < 0:
        return f"its step is {-difference:.1%} shorter, but {second.crowded}"
    reason = f"its step is {difference:.1%} longer" if difference > 5e-4 else "its step is as long"
    if best.crowded and not second.crowded:
        return f"{reason}, but it leaves room"
    return f"{reason}, and {second.crowded}" if second.crowded else reason


def _tables(candidate: Candidate) -> object:
    assert candidate.planned.plan is not None
    return [(table.name, table.sharding_type, table.ranks) for table in candidate.planned.plan.tables]
