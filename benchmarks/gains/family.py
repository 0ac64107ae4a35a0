"""The differences of all models to the base, in all tasks of all sources: one family of comparisons.

With a rival, two runs of the base averaged, the family has its differences to the base as well, and those of all other
models to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.multiplicity import adjust, describe_family, draws_for
from stem_torchrec.runtime.errors import UserError

from gains.done import Done
from gains.draws import Draws, draws_of, mean_over_tasks, paired

MEAN = "mean over tasks"
_SPARE = 4
"""How many times the smallest p-value of the draws a p-value may be, and still stand out on its own."""


@dataclass(frozen=True)
class Gain:
    """A model in a task of a source, beside another with the same seeds."""

    source: str
    task: str
    model: str
    over: str
    """The model that it is compared with: the base, or two runs of the base averaged."""
    seeds: tuple[int, ...]
    auc: float
    other_auc: float
    unit: str
    """What is drawn: users or rows."""
    difference: Interval
    """The difference, with a p-value adjusted for all comparisons."""


@dataclass(frozen=True)
class Family:
    """All comparisons of a report."""

    gains: Sequence[Gain]
    text: str
    """A sentence on their number and their draws."""


def compare(sources: Sequence[Done], config: CompareConfig, *, rival_of_two: bool = False) -> Family:
    """The differences of what is done.

    Args:
        sources: may be done in part.
        config: has the confidence, the correction and, if given, the number of draws.
        rival_of_two: whether two runs of the base averaged are a model too, which the others are compared with.
    """
    pairs = [(done, *pair) for done in sources for pair in _pairs(done, rival_of_two=rival_of_two)]
    number = sum(len(_units(done)) for done, *_ in pairs)
    draws = config.resamples or draws_for(_SPARE * number, config.confidence)
    of_models: dict[tuple[str, str, tuple[int, ...]], Mapping[str, Draws]] = {}
    differences: dict[tuple[str, str, str, str], Interval] = {}
    facts: dict[tuple[str, str, str, str], tuple[tuple[int, ...], Draws, Draws]] = {}
    for done, model, over, seeds in pairs:
        for name in (over, model):
            if (done.name, name, seeds) not in of_models:
                of_models[done.name, name, seeds] = _reported(done, draws_of(done, name, seeds, draws))
        own, other = (of_models[done.name, name, seeds] for name in (model, over))
        for task in own:
            both = paired({model: own[task], over: other[task]}, config.confidence)
            differences[done.name, task, model, over] = both.difference(model, over)
            facts[done.name, task, model, over] = seeds, own[task], other[task]
    adjusted = adjust(differences, config.correction)
    gains = [
        Gain(*key, seeds, own.whole, other.whole, own.unit, adjusted[key]) for key, (seeds, own, other) in facts.items()
    ]
    text = describe_family(adjusted, config.correction, draws=draws, confidence=config.confidence)
    return Family(gains, text if gains else "Nothing can be compared yet.")


def _pairs(done: Done, *, rival_of_two: bool) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """The comparisons on a source: a model, the one that it is compared with, and the seeds of both."""
    for model in done.models:
        seeds = tuple(done.seeds(model))
        if model != done.base and seeds:
            yield model, done.base, seeds
        # Two runs take two seeds.
        if rival_of_two and len(seeds) > 1:
            yield (done.of_two, done.base, seeds) if model == done.base else (model, done.of_two, seeds)


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
