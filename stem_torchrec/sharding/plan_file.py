"""plan.json: the type, kernel and ranks of each table, for a run that shards by exactly that."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval
from torchrec.distributed.planner import Topology
from torchrec.modules.embedding_configs import EmbeddingBagConfig

from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.config.sharding import PlacedType
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.file_systems import g_pathmgr
from stem_torchrec.sharding.placement import HOST_TYPES, Placement, some
from stem_torchrec.sharding.plan import Plan

PLAN_FORMAT = 1
"""Format version of plan.json."""
_ON_ALL_RANKS = ("data_parallel", "row_wise")

_Count = Annotated[int, Interval(ge=1, le=2**63 - 1)]
_Rank = Annotated[int, Interval(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class StoredTable:
    """How a table is sharded."""

    rows: _Count
    dim: _Count
    sharding_type: PlacedType
    compute_kernel: Literal["dense", "fused", "fused_uvm_caching", "fused_uvm"]
    ranks: tuple[_Rank, ...] = ()
    """Rank of each shard; of no meaning for the types that lie on all ranks."""
    cache_load_factor: Annotated[float, Interval(gt=0, le=1)] | None = None

    @property
    def placement(self) -> Placement:
        """What the planner must keep to."""
        ranks = () if self.sharding_type in _ON_ALL_RANKS else self.ranks
        return Placement(self.sharding_type, self.compute_kernel, ranks, self.cache_load_factor)


@dataclass(frozen=True)
class _StoredPlan:
    """The content of plan.json beside its format."""

    world_size: _Count
    local_world_size: _Count
    tables: dict[str, StoredTable]


def plan_to_json(plan: Plan) -> str:
    """The plan as JSON, which `read_plan` takes: for each table its size, type, kernel and the rank of each shard."""
    tables = {
        table.name: {
            "rows": table.rows,
            "dim": table.dim,
            "sharding_type": table.sharding_type,
            "compute_kernel": table.kernel,
            **({} if table.cache_load_factor is None else {"cache_load_factor": table.cache_load_factor}),
            "ranks": table.ranks,
        }
        for table in plan.tables
    }
    ranks = {"world_size": plan.world_size, "local_world_size": plan.local_world_size}
    head = json.dumps(with_format(ranks, PLAN_FORMAT))[1:-1]
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(entry)}" for name, entry in tables.items())
    return f'{{\n  {head},\n  "tables": {{\n{lines}\n  }}\n}}\n'


def read_plan(path: str, tables: Sequence[EmbeddingBagConfig], topology: Topology) -> dict[str, Placement]:
    """The placements of a plan file for exactly these tables and ranks.

    Raises UserError that names the place in the file that is wrong, or the tables that do not fit and the reasons; also
    for a file in a newer format.
    """
    plan = _read(path)
    problems = _problems(plan, {t.name: (t.num_embeddings, t.embedding_dim) for t in tables}, topology)
    if problems:
        if len(problems) > 6:
            problems[6:] = [f"and {len(problems) - 6} tables more"]
        raise UserError(
            f"--sharding.plan {path} does not fit: {'; '.join(problems)}; give a plan of these tables and ranks, or "
            "--sharding.plan None to plan anew, as where tables have grown."
        )
    return {name: table.placement for name, table in plan.tables.items()}


def tables_of_plan(text: str | bytes) -> Mapping[str, StoredTable]:
    """The tables of a plan by name; raises UserError for text, or its bytes, that `plan_to_json` did not return."""
    try:
        return _parse(text, "the plan").tables
    except FormatError:
        raise
    except ValueError as error:
        raise UserError(f"the plan cannot be read ({reason_of(error)}).") from error


def _read(path: str) -> _StoredPlan:
    option = f"--sharding.plan {path}"
    try:
        with g_pathmgr.open(path, "rb") as file:
            return _parse(file.read(), option)
    except FormatError:
        raise
    # ValueError: not JSON, or a wrong field.
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise UserError(f"{option} cannot be read as a plan ({reason}); a run writes one as plan.json.") from error


def _parse(text: str | bytes, what: str) -> _StoredPlan:
    return from_dict(_StoredPlan, without_format(parse_json(text), PLAN_FORMAT, what))


def _problems(plan: _StoredPlan, sizes: Mapping[str, tuple[int, int]], topology: Topology) -> list[str]:
    problems = []
    by_host = [name for name, table in plan.tables.items() if table.sharding_type in (*HOST_TYPES, "table_column_wise")]
    if plan.world_size != topology.world_size:
        problems.append(f"it is for {plan.world_size} ranks, and this run has {topology.world_size}")
    elif plan.local_world_size != topology.local_world_size and by_host:
        problems.append(
            f"{some(by_host)} need {plan.local_world_size} ranks per host, and this run has {topology.local_world_size}"
        )
    if missing := [name for name in sizes if name not in plan.tables]:
        problems.append(f"it has no {some(missing)}")
    if unknown := [name for name in plan.tables if name not in sizes]:
        problems.append(f"this model has no {some(unknown)}")
    for name, table in plan.tables.items():
        rows, dim = sizes.get(name, (table.rows, table.dim))
        if (rows, dim) != (table.rows, table.dim):
            problems.append(f"{name} is {table.rows} x {table.dim} in the plan and {rows} x {dim} in this model")
        if not table.ranks and table.sharding_type not in _ON_ALL_RANKS:
            problems.append(f"{name} has no ranks")
    return problems
