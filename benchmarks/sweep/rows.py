"""From outcomes to rows: one per case, compared with the others that train the same tasks by the same optimizer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.load import is_loaded
from sweep.cases import Case
from sweep.results import Outcome

EARLY = 3
EARLY_TOLERANCE = {"fp32": 2e-6, "tf32": 5e-6, "bf16": 5e-6}
"""Largest relative difference from the reference's loss that counts as the same in the first three steps, by
--train.precision. fp32 represents a loss to 6e-8, and plans that sum in another order were measured to differ by up to
1e-7; with bf16 products, which may then round the other way, by up to 2e-6. bf16 communication and a row-wise optimizer
on cut rows change the loss by 1e-5 and more. tf32 rounds less than bf16 and has the same tolerance."""
TOLERANCE = 5e-2
"""The same for all steps. Rounding errors grow, as Adagrad and Adam divide a gradient near 0 by a number near 0. Within
27 steps that was measured to change losses by up to 5e-4, and by 5e-3 with bf16 products, whether the first difference
came from the plan or from the last bit of the initial weights."""


@dataclass(frozen=True)
class Row:
    """A case over all its rounds; numbers are NaN if the case failed."""

    case: Case
    status: str
    reason: str = ""
    rounds: int = 0
    p10_ms: float = math.nan
    p50_ms: float = math.nan
    """Median over the measured steps of all rounds; the last rank to end a step determines its time."""
    p90_ms: float = math.nan
    spread: float = math.nan
    """Range of the medians of the rounds, over p50_ms; NaN with one round."""
    samples_per_second: float = math.nan
    """Rows of a global batch, divided by p50_ms."""
    ids_bytes: float = math.nan
    """Sent in a step, summed over the ranks; the same holds for the next two."""
    embeddings_bytes: float = math.nan
    gradients_bytes: float = math.nan
    peak_mib: float = math.nan
    """Resident memory of the rank that has the most."""
    added_mib: float = math.nan
    """The part of a rank's peak that came after the batches were made: tables, optimizer state, buffers, dense part."""
    device_peak_mib: float = math.nan
    """Memory of the GPU that has the most allocated; 0 without a GPU."""
    weights_mib: float = math.nan
    """Tables of the rank that has the most."""
    weights_imbalance: float = math.nan
    """Maximum over mean of the ranks; 1 is even."""
    estimate_imbalance: float = math.nan
    """The same for the planner's estimate."""
    estimate_ms: float = math.nan
    """The planner's estimate for the busiest rank: lookup and exchange of embeddings, forward and backward."""
    compute_ms: float = math.nan
    """The lookup in that estimate; the rest is the exchange."""
    lookup_ms: float = math.nan
    """What estimate_ms estimates, measured alone, without the exchange of ids; a median."""
    lookup_p10_ms: float = math.nan
    lookup_p90_ms: float = math.nan
    estimate_over_lookup: float = math.nan
    early_gap: float = math.nan
    """Largest relative difference from the reference's loss in the first three steps."""
    gap: float = math.nan
    """The same in all steps."""
    learns: str = ""
    """reference, same or other."""
    tables: str = ""
    """Number of tables by type."""
    others: float = math.nan
    """Cores that processes outside of the sweep kept busy, in the round where they did so the most."""
    loaded: bool = False
    """Whether these were so many that the times are too long."""


def summarize(outcomes: Sequence[Outcome], *, global_batch: int, precision: str = "fp32") -> list[Row]:
    """A row for each case, in the order of the outcomes.

    The losses of a case are compared with those of its reference: the first case that ran with the same number of
    tasks and the same optimizer.

    Args:
        outcomes: of any cases and rounds.
        global_batch: rows of all ranks in a step.
        precision: of the matrix products; it selects the tolerance.
    """
    by_case: dict[Case, list[Outcome]] = {}
    for outcome in outcomes:
        by_case.setdefault(outcome.case, []).append(outcome)
    rows = [_row(case, of_case, global_batch) for case, of_case in by_case.items()]
    references: dict[tuple[int, str], Case] = {}
    for row in rows:
        if row.status == "ok":
            references.setdefault(row.case.problem, row.case)
    return [
        _compare(row, by_case, references[row.case.problem], EARLY_TOLERANCE[precision]) if row.status == "ok" else row
        for row in rows
    ]


def fastest(rows: Iterable[Row]) -> dict[tuple[int, str], Row]:
    """The fastest row that learns the same as its reference, by number of tasks and optimizer."""
    best: dict[tuple[int, str], Row] = {}
    for row in rows:
        if row.learns in ("reference", "same"):
            so_far = best.setdefault(row.case.problem, row)
            best[row.case.problem] = min(so_far, row, key=lambda each: each.p50_ms)
    return best


def as_fast(best: Row, rows: Iterable[Row], *, share: float = 0.05) -> list[Row]:
    """The other rows of the same problem that learn the same and whose median step is at most `share` longer."""
    return [
        row
        for row in rows
        if row.case.problem == best.case.problem
        and row.case != best.case
        and row.learns in ("reference", "same")
        and row.p50_ms <= best.p50_ms * (1 + share)
    ]


def _row(case: Case, outcomes: Sequence[Outcome], global_batch: int) -> Row:
    measured = [outcome.measurement for outcome in outcomes if outcome.measurement is not None]
    if bad := [outcome for outcome in outcomes if outcome.status != "ok"]:
        return Row(case, bad[0].status, bad[0].reason, rounds=len(measured))
    steps = [last_rank(m.step_ms) for m in measured]
    p10, p50, p90 = np.percentile(np.concatenate(steps), [10, 50, 90]).tolist()
    lookups = np.concatenate([last_rank(m.lookup_ms) for m in measured])
    lookup_p10, lookup, lookup_p90 = np.percentile(lookups, [10, 50, 90]).tolist()
    loads = [(o.others, o.cores) for o in outcomes if o.others is not None and o.cores is not None]
    first = measured[0]
    estimate, compute = max((a + b, a) for a, b in zip(first.compute, first.communication, strict=True))
    return Row(
        case,
        "ok",
        rounds=len(measured),
        p10_ms=p10,
        p50_ms=p50,
        p90_ms=p90,
        spread=float(np.ptp([np.median(each) for each in steps])) / p50 if len(steps) > 1 else math.nan,
        samples_per_second=global_batch / p50 * 1000,
        ids_bytes=sum(first.ids),
        embeddings_bytes=sum(first.embeddings),
        gradients_bytes=sum(first.gradients),
        peak_mib=max(max(m.memory_peak) for m in measured),
        added_mib=max(
            peak - before for m in measured for peak, before in zip(m.memory_peak, m.memory_before, strict=True)
        ),
        device_peak_mib=max(max(m.device_memory_peak) for m in measured),
        weights_mib=max(first.weights),
        weights_imbalance=_imbalance(first.weights),
        estimate_imbalance=_imbalance([a + b for a, b in zip(first.compute, first.communication, strict=True)]),
        estimate_ms=estimate,
        compute_ms=compute,
        lookup_ms=lookup,
        lookup_p10_ms=lookup_p10,
        lookup_p90_ms=lookup_p90,
        estimate_over_lookup=estimate / lookup,
        tables=first.tables,
        others=max((others for others, _ in loads), default=math.nan),
        loaded=any(is_loaded(others, cores) for others, cores in loads),
    )


def _compare(row: Row, by_case: Mapping[Case, Sequence[Outcome]], reference: Case, tolerance: float) -> Row:
    expected = _losses(by_case[reference][0])
    gaps = np.max([np.abs(_losses(o) - expected) / np.abs(expected) for o in by_case[row.case]], axis=0)
    early, gap = float(gaps[:EARLY].max()), float(gaps.max())
    # A NaN is not a small difference: it compares as False.
    same = early <= tolerance and gap <= TOLERANCE
    learns = "reference" if row.case == reference else "same" if same else "other"
    return replace(row, early_gap=early, gap=gap, learns=learns)


def _losses(outcome: Outcome) -> np.ndarray:
    assert outcome.measurement is not None
    return np.array(outcome.measurement.losses)


def last_rank(by_rank: Sequence[Sequence[float]]) -> np.ndarray:
    """The time of each step, which ends when the last rank ends it; `by_rank` has the times by rank and step."""
    return np.max(np.array(by_rank), axis=0)


def _imbalance(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return max(values) / mean if mean else 1.0
