"""The plans made so far, a file each, so that an interrupted search continues and more can be planned later."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torchrec.distributed.types import ShardingPlan

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.sharding.plan import Plan, PlannedTable
from stem_torchrec.sharding.topology import Bandwidths

from common.output import make_folder, record_identity, write_whole
from common.table_list import TableSpec, tables_of_now
from planning.config import PlanConfig
from planning.strategies import Planned, Strategy

SEARCH_FILE = "search.json"
PLANS = "plans"


@dataclass(frozen=True)
class _Stored:
    """A result as a file has it."""

    strategy: Strategy
    nodes: int
    tasks: int
    rows: int
    seconds: float
    reason: str
    world_size: int = 0
    local_world_size: int = 0
    tables: tuple[PlannedTable, ...] | None = None


class PlanFolder:
    """The folder of one search: search.json says what is planned for, plans/ has a file for each plan.

    Raises UserError if the folder holds the plans of another cluster, batch size or list of tables.
    """

    def __init__(
        self, config: PlanConfig, tables: Sequence[TableSpec], bandwidths: Bandwidths, head: Mapping[str, str]
    ) -> None:
        self.folder = make_folder(config.out)
        make_folder(f"{config.out}/{PLANS}")
        self._ranks_per_node = config.ranks_per_node
        # Strategies, numbers of hosts, tasks and rows are in the names of the files; they may grow.
        names = ("ranks_per_node", "device", "hbm_gb", "host_gb", "batch_size", "seconds", "labels")
        identity = {
            **{name: getattr(config, name) for name in names},
            "tables": [to_dict(table) for table in tables],
            "bandwidths": to_dict(bandwidths),
        }

        def as_of_now(recorded: dict[str, Any]) -> dict[str, Any]:
            now = {**{name: value for name, value in to_dict(PlanConfig()).items() if name in names}, **recorded}
            if "tables" in now:
                now["tables"] = tables_of_now(now["tables"])
            if "bandwidths" in now:
                now["bandwidths"] = to_dict(from_dict(Bandwidths, now["bandwidths"]))
            return now

        record_identity(self.folder / SEARCH_FILE, identity, head, kind="search", as_of_now=as_of_now)

    def path(self, strategy: Strategy, *, nodes: int, tasks: int, rows: int) -> Path:
        """The file of a plan."""
        name = f"{nodes}x{self._ranks_per_node}.{strategy.name.replace('/', '.')}.T{tasks}.{rows}.json"
        return self.folder / PLANS / name

    def read(self, strategy: Strategy, *, nodes: int, tasks: int, rows: int) -> Planned | None:
        """The result of an earlier search, or None; raises UserError for a file that is not a result."""
        path = self.path(strategy, nodes=nodes, tasks=tasks, rows=rows)
        if not path.exists():
            return None
        try:
            stored = from_dict(_Stored, parse_json(path.read_text()))
        except ValueError as error:
            raise UserError(f"{path} is not a plan of this search ({reason_of(error)}); delete it.") from error
        plan = None
        if stored.tables is not None:
            # TorchRec's own plan only serves to shard, which needs a cluster.
            plan = Plan(ShardingPlan({}), stored.tables, stored.world_size, stored.local_world_size)
        return Planned(strategy, nodes, tasks, rows, stored.seconds, plan, stored.reason)

    def write(self, planned: Planned) -> None:
        """Writes a result, completely or not at all."""
        values: dict[str, Any] = {
            field.name: getattr(planned, field.name) for field in fields(planned) if field.name != "plan"
        }
        if planned.plan is not None:
            values |= {"world_size": planned.plan.world_size, "local_world_size": planned.plan.local_world_size}
            values["tables"] = planned.plan.tables
        path = self.path(planned.strategy, nodes=planned.nodes, tasks=planned.tasks, rows=planned.rows)
        write_whole(path, json.dumps(asdict(_Stored(**values))))
