"""What sending ids once, packing tables and lower precision gain: each case beside the stock one of its type.

The cases of a round run within minutes, so the ratio of two of them is fairly free of the machine's drift. How far the
ratios of the rounds lie apart is what noise is left.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tabulate import tabulate

from sweep_cases import Case
from sweep_results import Measurement, Outcome
from sweep_rows import last_rank


@dataclass(frozen=True)
class Gain:
    """A case against its base; above 1 the case is better."""

    case: Case
    ids: float
    """Bytes of ids of the base over those of the case; NaN where no ids travel."""
    copies: float
    """How often the base sends an id to a rank; see `copies_of_ids`."""
    speed: tuple[float, ...]
    """Median step of the base over that of the case, by round."""


def base_of(case: Case) -> Case:
    """What a case is compared with: TorchRec's own way with split tables of its type."""
    return replace(case, layout="split", input_dist="stock", communication="fp32")


def gains(outcomes: Sequence[Outcome]) -> list[Gain]:
    """The gains of the cases that ran in a round in which their base ran as well, in the order of the outcomes."""
    measured: dict[Case, dict[int, Measurement]] = {}
    for outcome in outcomes:
        if outcome.measurement is not None:
            measured.setdefault(outcome.case, {})[outcome.round] = outcome.measurement
    found = []
    for case, here in measured.items():
        base = measured.get(base_of(case), {})
        rounds = sorted(base.keys() & here.keys())
        if case != base_of(case) and rounds:
            there, first = base[rounds[0]], here[rounds[0]]
            ids = sum(there.ids) / sum(first.ids) if sum(first.ids) else math.nan
            speed = tuple(_median_step(base[each]) / _median_step(here[each]) for each in rounds)
            found.append(Gain(case, ids, copies_of_ids(there.plan), speed))
    return found


def copies_of_ids(plan: str) -> float:
    """How often the stock way sends an id to a rank that needs it: once per shard there, of any group's table.

    T + 1 where a rank that holds one of a feature's tables holds all, as under the types that cut tables over all
    ranks. A mean over features and ranks: it is exact for ids where the features send as many.

    Args:
        plan: of the split layout, as `plan_to_json` writes it.
    """
    tables = json.loads(plan)["tables"]
    received = [(name.partition("/")[2], rank) for name, table in tables.items() for rank in table["ranks"]]
    return len(received) / len(set(received))


def format_gains(found: Sequence[Gain]) -> str:
    """The gains as a Markdown table."""
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
        for gain in found
    ]
    headers = ["T", "optimizer", "type", "layout", "input", "comm", "ids", "copies", "speed", "over the rounds"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _median_step(measurement: Measurement) -> float:
    return float(np.median(last_rank(measurement.step_ms)))
