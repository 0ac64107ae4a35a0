"""The differences of all models to the base, in all tasks of all sources: one family of comparisons."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.multiplicity import adjust, describe_family, draws_for
from stem_torchrec.comparison.options import CompareConfig
from stem_torchrec.runtime.errors import UserError

from gains.done import Done
from gains.draws import Draws, draws_of, mean_over_tasks, paired

MEAN = "mean over tasks"


@dataclass(frozen=True)
class Gain:
    """A model in a task of a source, beside the base with the same seeds."""

    source: str
    task: str
    model: str
    seeds: tuple[int, ...]
    auc: float
    base_auc: float
    unit: str
    """What is drawn: users or rows."""
    over_base: Interval
    """The difference, with a p-value adjusted for all comparisons."""


@dataclass(frozen=True)
class Family:
    """All comparisons of a report."""

    gains: Sequence[Gain]
    text: str
    """A sentence on their number and their draws."""


def compare(sources: Sequence[Done], config: CompareConfig) -> Family:
    """The differences of what is done.

    Args:
        sources: may be done in part.
        config: has the confidence, the correction and, if given, the number of draws.
    """
    pairs = [(done, model, seeds) for done in sources for model in done.models if (seeds := _compared(done, model))]
    number = sum(len(_units(done)) for done, *_ in pairs)
    draws = config.resamples or draws_for(number, config.confidence)
    of_models: dict[tuple[str, str, tuple[int, ...]], Mapping[str, Draws]] = {}
    over_base: dict[tuple[str, str, str], Interval] = {}
    facts: dict[tuple[str, str, str], tuple[tuple[int, ...], Draws, Draws]] = {}
    for done, model, seeds in pairs:
        for name in (done.base, model):
            if (done.name, name, seeds) not in of_models:
                of_models[done.name, name, seeds] = _reported(done, draws_of(done, name, seeds, draws))
        own, base = (of_models[done.name, name, seeds] for name in (model, done.base))
        for task in own:
            both = paired({model: own[task], done.base: base[task]}, config.confidence)
            over_base[done.name, task, model] = both.difference(model, done.base)
            facts[done.name, task, model] = seeds, own[task], base[task]
    adjusted = adjust(over_base, config.correction)
    gains = [
        Gain(*key, seeds, own.whole, base.whole, own.unit, adjusted[key]) for key, (seeds, own, base) in facts.items()
    ]
    text = describe_family(adjusted, config.correction, draws=draws, confidence=config.confidence)
    return Family(gains, text if gains else "Nothing can be compared yet.")


def _compared(done: Done, model: str) -> tuple[int, ...]:
    return tuple(done.seeds(model)) if model != done.base else ()


def _units(done: Done) -> Sequence[str]:
    return (MEAN,) if done.source.tasks == "mean" else done.tasks


def _reported(done: Done, by_task: Mapping[str, Draws]) -> Mapping[str, Draws]:
    """By task, or their mean."""
    if done.source.tasks != "mean":
        return by_task
    missing = [task for task, each in by_task.items() if not each.complete]
    if missing:
        raise UserError(
            f"source {done.name}: its tasks are to be averaged, but some rows have no label of {missing[0]}; leave "
            "`tasks: mean` out."
        )
    return {MEAN: mean_over_tasks(by_task)}
