"""Placements: the part of a table's sharding that a rule or a plan file fixes; the planner fills in the rest.

"like/user_id=table_wise:rank=1"  ->  Rule("like/user_id", Placement("table_wise", ranks=(1,)))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from stem_torchrec.runtime.errors import UserError, nearest

FUSED_TYPES = ("table_wise", "row_wise", "column_wise", "table_column_wise", "table_row_wise", "grid_shard")
"""The sharding types that keep a table's optimizer in the backward pass."""

COLUMN_TYPES = ("column_wise", "table_column_wise", "grid_shard")
"""Those that cut a table by columns."""

HOST_TYPES = ("table_row_wise", "grid_shard")
"""Those that cut a table, or each block of its columns, by rows over the ranks of a host."""

CPU_KERNELS = ("fused", "dense")
"""The compute kernels that need no GPU."""

FUSED_KERNELS = ("fused", "fused_uvm_caching", "fused_uvm")
"""The compute kernels of the fused types, fastest first; UVM keeps the table in host memory."""


@dataclass(frozen=True)
class Placement:
    """How one table is to be sharded, as far as a rule or a plan file fixes it."""

    sharding_type: str = "auto"
    """One of TorchRec's seven types; auto leaves it to the planner."""
    kernel: str = "auto"
    """Compute kernel; auto is the fastest that fits the type, the device and its memory."""
    ranks: tuple[int, ...] = ()
    """Rank of each shard, by columns and then by rows; an empty tuple leaves them to the planner. The types that cut
    rows over a host also accept one rank per host."""
    cache_load_factor: float | None = None
    """Share of the rows that fused_uvm_caching keeps on the GPU; TorchRec's 0.2 if None."""


AUTO = Placement()
"""All left to the planner."""


@dataclass(frozen=True)
class Rule:
    """A placement for the tables whose names a pattern matches."""

    pattern: str
    placement: Placement
    text: str


def parse_rules(rules: Sequence[str]) -> list[Rule]:
    """Parses `PATTERN=TYPE[:kernel=KERNEL][:rank=R,R...][:cache=SHARE]`; raises UserError for a rule that is wrong."""
    return [_parse(rule) for rule in rules]


def match_rules(rules: Sequence[Rule], tables: Sequence[str], default: Placement = AUTO) -> dict[str, Placement]:
    """The placement of each table: that of the first rule that matches its name, or `default`.

    Raises UserError for a rule without a table, either because none matches or because earlier rules take them all.
    """
    placements: dict[str, Placement] = {}
    for rule in rules:
        matches = [table for table in tables if fnmatchcase(table, rule.pattern)]
        if not matches:
            raise UserError(
                f"--sharding.rules {rule.text!r} matches no table; the tables are {some(tables)}"
                f"{nearest(rule.pattern, tables)}"
            )
        left = [table for table in matches if table not in placements]
        if not left:
            raise UserError(
                f"--sharding.rules {rule.text!r} comes too late: earlier rules match {some(matches)}; put it first."
            )
        placements |= dict.fromkeys(left, rule.placement)
    return {table: placements.get(table, default) for table in tables}


def check_placements(placements: Mapping[str, Placement], *, device: str, world_size: int) -> None:
    """Raises UserError for a kernel or a rank that the device, the run or the sharding type does not have."""
    for table, placement in placements.items():
        kind, kernel = placement.sharding_type, placement.kernel
        fits = ("dense",) if kind == "data_parallel" else FUSED_KERNELS
        if kernel == "dense" and kind == "auto":
            fits = ("dense",)
        if kernel not in ("auto", *fits):
            raise UserError(f"{table} cannot be {kind} with the kernel {kernel}; {kind} tables take {_or(fits)}.")
        if device == "cpu" and kernel not in ("auto", *CPU_KERNELS):
            raise UserError(f"the kernel {kernel} of {table} needs a GPU; on CPU choose fused.")
        if placement.cache_load_factor is not None and kernel != "fused_uvm_caching":
            raise UserError(f"{table} has a cache load factor, which only the kernel fused_uvm_caching uses.")
        if placement.ranks and kind == "auto":
            raise UserError(f"{table} has ranks but no sharding type; give one, as in {table}=table_wise:rank=0.")
        if placement.ranks and kind in ("row_wise", "data_parallel"):
            raise UserError(f"{table} has ranks, but {kind} tables lie on all ranks; leave out rank=.")
        beyond = [rank for rank in placement.ranks if not 0 <= rank < world_size]
        if beyond:
            raise UserError(f"{table} is to be on rank {beyond[0]}, but this run has the ranks 0 to {world_size - 1}.")


def _parse(rule: str) -> Rule:
    pattern, equals, how = rule.partition("=")
    kind, *options = how.split(":")
    types = ("auto", "data_parallel", *FUSED_TYPES)
    if not pattern or not equals:
        raise UserError(f"--sharding.rules {rule!r} is not a rule; write PATTERN=TYPE, as in 'shared/*=row_wise'.")
    if kind not in types:
        raise UserError(
            f"--sharding.rules {rule!r} names the sharding type {kind!r}, but must name one of {', '.join(types)}"
            f"{nearest(kind, types)}"
        )
    values: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition("=")
        if name not in ("kernel", "rank", "cache") or not value or name in values:
            raise UserError(
                f"--sharding.rules {rule!r}: {option!r} is not an option; after the type come kernel=KERNEL, rank=R,R "
                "and cache=SHARE, each at most once."
            )
        values[name] = value
    kernel = values.get("kernel", "auto")
    kernels = ("auto", "dense", *FUSED_KERNELS)
    if kernel not in kernels:
        raise UserError(
            f"--sharding.rules {rule!r} names the kernel {kernel!r}, but must name one of {', '.join(kernels)}"
            f"{nearest(kernel, kernels)}"
        )
    return Rule(pattern, Placement(kind, kernel, _ranks(rule, values), _cache(rule, values)), rule)


def _ranks(rule: str, values: Mapping[str, str]) -> tuple[int, ...]:
    try:
        return tuple(int(rank) for rank in values["rank"].split(",")) if "rank" in values else ()
    except ValueError:
        raise UserError(
            f"--sharding.rules {rule!r}: rank is {values['rank']!r}, not numbers such as 0 or 0,1."
        ) from None


def _cache(rule: str, values: Mapping[str, str]) -> float | None:
    if "cache" not in values:
        return None
    try:
        share = float(values["cache"])
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise UserError(f"--sharding.rules {rule!r}: cache is {values['cache']!r}, not a share above 0 and up to 1.")
    return share


def some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _or(names: Sequence[str]) -> str:
    return " or ".join(names)
