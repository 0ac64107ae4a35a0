"""The cases of a sharding sweep: what they vary, their names, and which combinations make sense.

type      layout  input   tasks  optimizer  kernel  communication
row_wise / split / once  /  T8  /  adagrad /  auto  /  fp32

A case of fused_uvm_caching may have a further part, the share of the rows that it keeps on the GPU: .../fp32/cache0.1
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import get_args

from stem_torchrec.config import (
    Communication,
    InputDist,
    Kernel,
    Layout,
    ShardingType,
    SparseOptimizerName,
    TrainConfig,
)
from stem_torchrec.runtime.errors import UserError, nearest

TYPES: tuple[ShardingType, ...] = (
    "table_wise",
    "row_wise",
    "table_row_wise",
    "column_wise",
    "table_column_wise",
    "grid_shard",
    "data_parallel",
)
"""TorchRec's sharding types. The first one that runs is the reference for the others."""


@dataclass(frozen=True)
class Case:
    """One combination; its name has the parts in the order of the fields."""

    type: ShardingType
    layout: Layout
    input_dist: InputDist
    tasks: int
    optimizer: SparseOptimizerName
    kernel: Kernel
    communication: Communication
    cache: float | None = None
    """Share of the rows that fused_uvm_caching keeps on the GPU; TorchRec's 0.2 if None."""

    @property
    def name(self) -> str:
        """`row_wise/split/once/T8/adagrad/auto/fp32`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return "/".join(_write(name, value) for name, value in parts.items() if value is not None)

    @property
    def problem(self) -> tuple[int, str]:
        """Number of tasks and optimizer; only cases with the same ones are compared."""
        return self.tasks, self.optimizer

    def configure(self, config: TrainConfig) -> TrainConfig:
        """`config` with the options of this case; the batches choose the labels."""
        # Only a rule names a cache.
        cached = (f"*={self.type}:kernel={self.kernel}:cache={self.cache}",) if self.cache is not None else ()
        return replace(
            config,
            model=replace(config.model, layout=self.layout),
            sparse=replace(config.sparse, name=self.optimizer),
            sharding=replace(
                config.sharding,
                type=self.type,
                kernel=self.kernel,
                input_dist=self.input_dist,
                communication=self.communication,
                rules=(*config.sharding.rules, *cached),
            ),
        )


@dataclass(frozen=True)
class Axes:
    """The values to combine, by field of Case."""

    type: tuple[ShardingType, ...]
    layout: tuple[Layout, ...]
    input_dist: tuple[InputDist, ...]
    tasks: tuple[int, ...]
    optimizer: tuple[SparseOptimizerName, ...]
    kernel: tuple[Kernel, ...]
    communication: tuple[Communication, ...]
    cache: tuple[float | None, ...] = (None,)
    """For the cases that have a cache."""


_KNOWN = {
    "type": get_args(ShardingType),
    "layout": get_args(Layout),
    "input_dist": get_args(InputDist),
    "optimizer": get_args(SparseOptimizerName),
    "kernel": get_args(Kernel),
    "communication": get_args(Communication),
}
_NAMES = tuple(field.name for field in fields(Case))
_CACHING = "fused_uvm_caching"


def list_cases(axes: Axes, patterns: Sequence[str] = ()) -> tuple[list[Case], dict[Case, str]]:
    """The cases to run, each once, and those that are left out because they make no sense, with the reason.

    Args:
        axes: the values to combine.
        patterns: case names. Parts at the end may be missing, and a part may contain `*` and `?`. A part that is
            missing or just `*` stands for the values in `axes`; any other part is matched against all known values.
            Without patterns all of `axes` are combined.

    Raises UserError for a number of tasks below 1, for a pattern that names something unknown, and if no case is left.

    Example::

        list_cases(axes, ["table_wise/split/once/T8", "*_row_wise"])
    """
    combined = [case for pattern in patterns or ("*",) for case in _combine(_axes_of(pattern, axes))]
    unique = sorted(dict.fromkeys(combined), key=_order)
    if wrong := [case.tasks for case in unique if case.tasks < 1]:
        raise UserError(f"a case cannot have {wrong[0]} tasks; give at least 1.")
    reasons = {case: why_left_out(case) for case in unique}
    cases = [case for case in unique if not reasons[case]]
    if not cases:
        raise UserError(
            f"none of {len(unique)} combinations makes sense, such as {unique[0].name}: {reasons[unique[0]]}; choose "
            "others."
        )
    return cases, {case: reason for case, reason in reasons.items() if reason}


def why_left_out(case: Case) -> str:
    """Why the case is the same as a simpler one, or its kernel does not support its type; empty for a case to run."""
    if (case.type, case.kernel) == ("auto", "dense"):
        return "the planner would choose data_parallel, which is a case of its own"
    exchanges = case.type != "data_parallel"
    if case.kernel != "auto" and exchanges != (case.kernel != "dense"):
        return f"the kernel {case.kernel} does not support {case.type}"
    if not exchanges and (case.input_dist != "stock" or case.communication != "fp32"):
        return "every rank holds the whole table, so no ids and no embeddings are sent"
    if case.layout == "packed" and case.input_dist == "once":
        return "a packed table is looked up once, so stock sends its ids once as well"
    return ""


def _order(case: Case) -> tuple:
    """Sort key: problem by problem; within a problem, the best reference for the other cases comes first."""
    return (
        *case.problem,
        _KNOWN["communication"].index(case.communication),
        [*TYPES, "auto"].index(case.type),
        _KNOWN["layout"].index(case.layout),
        _KNOWN["input_dist"].index(case.input_dist),
        _KNOWN["kernel"].index(case.kernel),
        case.cache or 0.0,
    )


def _axes_of(pattern: str, axes: Axes) -> Axes:
    parts = pattern.split("/")
    if len(parts) > len(_NAMES):
        raise UserError(f"--cases {pattern!r} has {len(parts)} parts, but a case is {'/'.join(_NAMES)}.")
    chosen = {name: _values(name, part, pattern) for name, part in zip(_NAMES, parts, strict=False) if part != "*"}
    return replace(axes, **chosen)


def _values(name: str, part: str, pattern: str) -> tuple:
    if name == "tasks":
        if not (part.startswith("T") and part[1:].isdecimal()):
            raise UserError(f"--cases {pattern!r}: {part!r} is not a number of tasks; write T8, or * for all --tasks.")
        return (int(part[1:]),)
    if name == "cache":
        return (_cache(part, pattern),)
    values = tuple(value for value in _KNOWN[name] if fnmatchcase(value, part))
    if not values:
        known = ", ".join(_KNOWN[name])
        raise UserError(
            f"--cases {pattern!r}: {part!r} is not a known {name.replace('_', ' ')}; it must be one of {known}"
            f"{nearest(part, _KNOWN[name])}"
        )
    return values


def _cache(part: str, pattern: str) -> float:
    try:
        share = float(part.removeprefix("cache"))
    except ValueError:
        share = -1.0
    if not (part.startswith("cache") and 0 < share <= 1):
        raise UserError(
            f"--cases {pattern!r}: {part!r} is not a share of the rows above 0 and up to 1; write cache0.1, or * for "
            "all --caches."
        )
    return share


def _combine(axes: Axes) -> list[Case]:
    cases = [Case(*values) for values in product(*(getattr(axes, name) for name in _NAMES))]
    return [case if case.kernel == _CACHING else replace(case, cache=None) for case in cases]


def _write(name: str, value: str | float) -> str:
    return {"tasks": "T", "cache": "cache"}.get(name, "") + str(value)
