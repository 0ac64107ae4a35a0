"""What sending ids once, packing tables and lower precision gain: each case beside the stock one of its type.

The cases of a round run within minutes of each other, so drift of the machine hardly changes the ratio of two of them.
The spread of the ratios over the rounds is the noise that is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tabulate import tabulate

from stem_torchrec.sharding.plan_file import tables_of_plan

from sweep.cases import Case
from sweep.results import Measurement, Outcome
from sweep.rows import last_rank


@dataclass(frozen=True)
class Gain:
    """A case against its base; the case is better where a ratio is above 1."""

    case: Case
    ids: float
    """Bytes of ids of the base over those of the case; NaN if the case sends no ids."""
    copies: float
    """How often the base sends an id to a rank; see `copies_of_ids`."""
    speed: tuple[float, ...]
    """Median step of the base over that of the case, by round."""


def base_of(case: Case) -> Case:
    """The case to compare with: the same type with split tables, TorchRec's own input distribution and fp32."""
    return replace(case, layout="split", input_dist="stock", communication="fp32")


def gains(outcomes: Sequence[Outcome]) -> list[Gain]:
    """The gains of all cases that share a round with their base, in the order of the outcomes."""
    measured: dict[Case, dict[int, Measurement]] = {}
    for outcome in outcomes:
        if outcome.measurement is not None:
            measured.setdefault(outcome.case, {})[outcome.round] = outcome.measurement
    result = []
    for case, own in measured.items():
        base = measured.get(base_of(case), {})
        rounds = sorted(base.keys() & own.keys())
        if case != base_of(case) and rounds:
            first_base, first = base[rounds[0]], own[rounds[0]]
            ids = sum(first_base.ids) / sum(first.ids) if sum(first.ids) else math.nan
            speed = tuple(_median_step(base[each]) / _median_step(own[each]) for each in rounds)
            result.append(Gain(case, ids, copies_of_ids(first_base.plan), speed))
    return result


def copies_of_ids(plan: str) -> float:
    """How often stock sends an id to a rank that needs it: once for each shard on that rank, of any group's table.

    This is T + 1 if a rank that holds one of a feature's tables holds all of them, as with the types that cut tables
    over all ranks. The result is a mean over features and ranks, exact if all features send equally many ids.

    Args:
        plan: a plan of the split layout, as `plan_to_json` writes it.
    """
    tables = tables_of_plan(plan)
    received = [(name.partition("/")[2], rank) for name, table in tables.items() for rank in table.ranks]
    return len(received) / len(set(received))


def format_gains(results: Sequence[Gain]) -> str:
    """The gains as a Markdown table, a row per case."""
    rows = [
        [
            gain.case.tasks,
            gain.case.optimizer,
            gain.case.type,
            gain.case.layout,
            gain.case.input_dist,
            gain.case.communication,
            "" if math.isnan(gain.ids) else f"{gain.ids:.2f}",
            "" if math.isnan(gain.ids) else f"{gain.copies:.2f}",
            f"{np.median(gain.speed):.2f}",
            f"{min(gain.speed):.2f} to {max(gain.speed):.2f}",
        ]
        for gain in results
    ]
    headers = ["T", "optimizer", "type", "layout", "input", "comm", "ids", "copies", "speed", "over the rounds"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _median_step(measurement: Measurement) -> float:
    return float(np.median(last_rank(measurement.step_ms)))
