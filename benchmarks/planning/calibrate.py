"""Bandwidths from measurements: those with which the planner would have estimated a sweep correctly.

The planner's estimate is bytes through memory over memory's bandwidth plus bytes through links over theirs. So each
plan that benchmarks/sharding.py measured is priced twice, once with links that cost nothing and once with memory that
costs nothing, and two factors are fitted to the times of the lookups and exchanges measured alone:

    measured ms = a * memory ms + b * link ms

by least squares of the relative errors. Memory's bandwidth is then divided by a, and that of the links by b. Neither
term includes what an operation costs before its first byte, so small tables and batches give small bandwidths: they
are valid for steps like the measured ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.plan_file import read_plan, tables_of_plan
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.sharder import make_sharder
from stem_torchrec.sharding.topology import Bandwidths, make_topology

from common.table_list import TableSpec
from sweep.results import CASES, SWEEP_FILE, Outcome
from sweep.rows import Row, summarize

LEAST_CASES = 3
"""Number of cases that a calibration needs."""
_FREE = 1e15
"""A bandwidth in GB/s at which a transfer costs nothing."""
_MEMORY = ("hbm", "ddr", "hbm_to_ddr")
_LINKS = ("intra_host", "inter_host")


@dataclass(frozen=True)
class Calibration:
    """Bandwidths that fit a sweep, and how well they fit."""

    folder: str
    bandwidths: Bandwidths
    changed: tuple[str, ...]
    """Fields of bandwidths that were fitted; the others are as given."""
    cases: int
    """Number of cases that the fit uses."""
    together: bool
    """Whether one factor was fitted for memory and links together, as the cases cannot separate two."""
    before: tuple[float, float, float]
    """Estimate over measured time with the given bandwidths: minimum, median and maximum of the cases."""
    after: tuple[float, float, float]
    """The same with the fitted bandwidths."""
    unused: Mapping[str, str]
    """Cases of the sweep that the fit does not use, by name, with the reason."""


@dataclass(frozen=True)
class _Sweep:
    """What sweep.json tells of how the cases were measured."""

    ranks: int
    ranks_per_host: int
    batch_size: int
    tables: tuple[TableSpec, ...]


@dataclass(frozen=True)
class Priced:
    """The measured time of a case, and the planner's two parts of the estimate for its busiest rank."""

    measured_ms: float
    memory_ms: float
    link_ms: float


def calibrate(folder: str, bandwidths: Bandwidths, *, device: str) -> Calibration:
    """Bandwidths that fit the sweep in `folder`.

    Args:
        folder: results of `benchmarks/sharding.py --tables`.
        bandwidths: those to start from; the ones that the sweep cannot determine stay as they are.
        device: cuda or cpu, as in the sweep.

    Raises UserError if the folder has no such results, they are of another device, or there are too few cases.
    """
    sweep, outcomes = _read(folder)
    devices = {"cpu" if o.measurement.device == "cpu" else "cuda" for o in outcomes if o.measurement}
    if devices - {device}:
        raise UserError(
            f"--calibrate {folder} was measured on {' and '.join(sorted(devices))}, but this plan is for {device}; "
            f"measure on {device}, or plan with --device {min(devices)}."
        )
    priced: list[Priced] = []
    unused = {}
    for row in summarize(outcomes, global_batch=1):
        if row.status != "ok":
            unused[row.case.name] = f"{row.status}: {row.reason}"
        elif row.case.type == "data_parallel":
            unused[row.case.name] = "it exchanges no embeddings"
        elif price := _price(folder, sweep, row, outcomes, bandwidths, device):
            priced.append(price)
        else:
            unused[row.case.name] = "it has tables in UVM, which would need a third factor"
    if len(priced) < LEAST_CASES:
        raise UserError(
            f"--calibrate {folder} has {len(priced)} cases that can be compared (not data_parallel, not in UVM), but "
            f"needs {LEAST_CASES}; measure more types."
        )
    memory, link, together = fit(priced)
    links = _LINKS if sweep.ranks > sweep.ranks_per_host else _LINKS[: min(1, sweep.ranks - 1)]
    changed = ("hbm" if device == "cuda" else "ddr", *links)
    factors = {name: memory if name in _MEMORY else link for name in changed}
    fitted = replace(bandwidths, **{name: getattr(bandwidths, name) / factor for name, factor in factors.items()})
    before, after = _ratios(priced, 1.0, 1.0), _ratios(priced, memory, link)
    return Calibration(folder, fitted, changed, len(priced), together and bool(links), before, after, unused)


def fit(priced: Sequence[Priced]) -> tuple[float, float, bool]:
    """Factors on the times of memory and links, and whether they are one and the same.

    They are the same if the cases cannot separate the two, or if one of them would not be positive.
    """
    parts = np.array([[case.memory_ms, case.link_ms] for case in priced])
    # Divided by the measured time, so that relative errors are squared.
    relative = parts / np.array([[case.measured_ms] for case in priced])
    if np.linalg.matrix_rank(relative) == 2:
        memory, link = np.linalg.lstsq(relative, np.ones(len(priced)), rcond=None)[0].tolist()
        if memory > 0 and link > 0:
            return memory, link, False
    total = relative.sum(axis=1)
    both = float(total.sum() / (total**2).sum())
    return both, both, True


def _ratios(priced: Sequence[Priced], memory: float, link: float) -> tuple[float, float, float]:
    ratios = [(memory * case.memory_ms + link * case.link_ms) / case.measured_ms for case in priced]
    return min(ratios), float(np.median(ratios)), max(ratios)


def _read(folder: str) -> tuple[_Sweep, list[Outcome]]:
    path = Path(folder)
    try:
        content = parse_json((path / SWEEP_FILE).read_text())["sweep"]
        known = {name: content[name] for name in ("ranks", "ranks_per_host", "tables")}
        sweep = from_dict(_Sweep, known | {"batch_size": content["data"]["batch_size"]})
        files = sorted(file for file in (path / CASES).glob("[!.]*.json") if not file.name.endswith(".plan.json"))
        outcomes = [from_dict(Outcome, parse_json(file.read_text())) for file in files]
        for outcome in outcomes:
            _check(outcome)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--calibrate {folder} holds no results of benchmarks/sharding.py ({reason_of(error)}); give "
            "the folder that its --out named."
        ) from error
    if not sweep.tables:
        raise UserError(
            f"--calibrate {folder} was measured on a log, so the number of ids per row is unknown; measure a list of "
            "tables with benchmarks/sharding.py --tables."
        )
    return sweep, outcomes


def _check(outcome: Outcome) -> None:
    """Raises ValueError for an outcome that no sweep writes."""
    if outcome.status != "ok":
        return
    if outcome.measurement is None:
        raise ValueError(f"{outcome.case.name} is ok, but was not measured")
    tables_of_plan(outcome.measurement.plan)
    times = (*outcome.measurement.step_ms, *outcome.measurement.lookup_ms)
    if not times or not all(each and min(each) > 0 for each in times):
        raise ValueError(f"{outcome.case.name} has times that are missing or not above 0")


def _price(
    folder: str,
    sweep: _Sweep,
    row: Row,
    outcomes: Sequence[Outcome],
    bandwidths: Bandwidths,
    device: str,
) -> Priced | None:
    """The case as the planner prices its plan; None for a plan with tables in UVM."""
    first = min((o for o in outcomes if o.case == row.case and o.measurement), key=lambda outcome: outcome.round)
    assert first.measurement is not None
    planned = tables_of_plan(first.measurement.plan)
    if any(table.compute_kernel != "fused" for table in planned.values()):
        return None
    configs = [
        EmbeddingBagConfig(
            name=name,
            num_embeddings=table.rows,
            embedding_dim=table.dim,
            feature_names=[name.partition("/")[2]],
        )
        for name, table in planned.items()
    ]
    file = Path(folder) / CASES / f"{row.case.name.replace('/', '.')}.{first.round}.plan.json"
    free = {field.name: _FREE for field in fields(Bandwidths)}
    by_rank = []
    for priced in (_MEMORY, _LINKS):
        topology = make_topology(
            world_size=sweep.ranks,
            local_world_size=sweep.ranks_per_host,
            device=device,
            hbm_gib=2**20 if device == "cuda" else None,
            ddr_gib=2**20,
            bandwidths=Bandwidths(**(free | {name: getattr(bandwidths, name) for name in priced})),
        )
        placements: dict[str, Placement] = read_plan(str(file), configs, topology)
        collection = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        plan = plan_sharding(
            nn.ModuleDict({"embedding_bag_collection": collection}),
            topology=topology,
            batch_size=sweep.batch_size,
            placements=placements,
            sharder=make_sharder(communication=row.case.communication),
            pooling_factors={spec.name: spec.pooling for spec in sweep.tables},
        )
        by_rank.append(plan.per_rank("estimate"))
    memory, link = max(zip(*by_rank, strict=True), key=sum)
    return Priced(row.lookup_ms, memory, link)
