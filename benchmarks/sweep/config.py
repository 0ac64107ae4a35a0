"""The command line of a sweep, and what follows from it: the cases, and the run that they vary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.config import (
    Communication,
    DataConfig,
    InputDist,
    Kernel,
    Layout,
    ShardingType,
    SparseOptimizerName,
    TrainConfig,
    parse_known_arguments,
)
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFile, LocalOutput
from stem_torchrec.training.configuration import config_from_command_line

from common.output import check_out
from common.table_list import TableSpec, check_labels, read_table_list
from sweep.cases import TYPES, Axes, Case, list_cases

_DESCRIPTION = """\
Measures sharding types, layouts and input distributions on your log or a list of tables, and recommends one.

The options of stem_torchrec/train.py (--recipe, --config, --data.path, --model.embedding-dim, ...) set what is trained;
python stem_torchrec/train.py --help lists them."""


@dataclass(frozen=True)
class SweepConfig:
    """What to sweep; train.py's options are taken as well."""

    out: LocalOutput = ""
    """Folder for the results. The same command resumes an interrupted sweep."""
    tables: LocalFile | None = None
    """A YAML list of tables (name, rows, dim, pooling, zipf) to measure without a log; the labels are then random."""
    cases: tuple[str, ...] = ()
    """Only these cases, by their names type/layout/input/tasks/optimizer/kernel/communication/cache. A part that is *
    or missing at the end stands for all values of the options below: `table_wise/split/once/T8 *_row_wise`."""
    types: tuple[Literal["all", ShardingType], ...] = ("all",)
    """Sharding types; all stands for all seven, auto for what TorchRec's planner chooses."""
    layouts: tuple[Layout, ...] = ("split", "packed")
    """Layouts of the tables; packed needs --optimizers adagrad or sgd."""
    input_dists: tuple[InputDist, ...] = ("stock", "once")
    """How ids are sent to the ranks of the tables."""
    tasks: tuple[Annotated[int, Interval(ge=1, le=1000)], ...] = ()
    """Numbers of tasks; by default as many as the log has labels, and 2 for a table list. If there are more tasks than
    labels in the log, the further tasks get random labels."""
    optimizers: tuple[SparseOptimizerName, ...] = ()
    """Optimizers of the tables; by default --sparse.name."""
    kernels: tuple[Kernel, ...] = ("auto",)
    """Compute kernels."""
    caches: tuple[Annotated[float, Interval(gt=0, le=1)], ...] = ()
    """Shares of the rows that fused_uvm_caching keeps on the GPU; TorchRec's 0.2 by default."""
    communications: tuple[Communication, ...] = ("fp32",)
    """Precisions in which embeddings and their gradients are sent."""
    steps: Annotated[int, Interval(ge=1, le=10**6)] = 20
    """Measured steps of a case."""
    warmup: Annotated[int, Interval(ge=1, le=10**6)] = 5
    """Steps before the measured ones."""
    rounds: Annotated[int, Interval(ge=1, le=10**6)] = 1
    """How often each case runs; the order changes each time, against drift of the machine. All steps count."""
    timeout: Annotated[float, Interval(ge=1, le=1e6)] = 300.0
    """Seconds after which a case that has not ended is stopped."""
    retry: bool = False
    """Runs the cases again that failed so far."""


def read_command_line(args: Sequence[str] | None = None) -> tuple[SweepConfig, TrainConfig]:
    """What to sweep, and the run that all cases vary; raises UserError for values that make no sense in either."""
    config, rest = parse_known_arguments(SweepConfig(), args, description=_DESCRIPTION)
    train = config_from_command_line(rest)
    check_out(config.out)
    for option in ("types", "layouts", "input_dists", "kernels", "communications"):
        if not getattr(config, option):
            raise UserError(f"--{option.replace('_', '-')} is empty; leave it out for the default.")
    if train.sharding.plan is not None:
        raise UserError("--sharding.plan pins every table, so there is nothing to sweep; leave it out.")
    if not train.data.batch_size:
        # A sweep asks for the speed of a step, whose rows do not follow from those of a log.
        train = replace(train, data=replace(train.data, batch_size=DataConfig.batch_size))
    return config, train


@dataclass(frozen=True)
class Sweep:
    """What all ranks need to know about a sweep."""

    cases: tuple[Case, ...]
    left_out: Mapping[Case, str]
    """Combinations that make no sense, with the reason."""
    tables: tuple[TableSpec, ...]
    """The table list; empty for a log."""
    train: TrainConfig
    labels: tuple[str, ...]
    """Labels of the log, or names for the tasks of a table list."""


def plan_sweep(config: SweepConfig, train: TrainConfig) -> Sweep:
    """The cases and what they run on; of a log it reads only the schema."""
    tables = tuple(read_table_list(config.tables)) if config.tables else ()
    if tables:
        labels = train.data.labels
        if labels:
            check_labels(labels, max(config.tasks, default=len(labels)), "--data.labels")
        own = tuple(table.name for table in tables if table.own)
        if len(own) < len(tables):
            if not own or not isinstance(train.model, OwnTableOptions):
                raise UserError(
                    f"{config.tables} has features with own: false, which are measured only beside others and with a "
                    "model like stem; leave own out."
                )
            train = replace(train, model=replace(train.model, own_tables=own))
    elif train.data.path is None:
        labels = train.data.labels or train.data.synthetic.tasks
    elif not train.data.path:
        raise UserError("this recipe trains on a log of your own: give --data.path DIR, or --tables FILE instead.")
    else:
        schema = load_schema(train.data.path)
        labels = Columns.select(schema, features=train.data.features, labels=train.data.labels).labels
    axes = Axes(
        type=tuple(dict.fromkeys(kind for name in config.types for kind in (TYPES if name == "all" else (name,)))),
        layout=config.layouts,
        input_dist=config.input_dists,
        tasks=config.tasks or (len(labels) or 2,),
        optimizer=config.optimizers or (train.sparse.name,),
        kernel=config.kernels,
        communication=config.communications,
        cache=config.caches or (None,),
    )
    cases, left_out = list_cases(axes, config.cases)
    return Sweep(tuple(cases), left_out, tables, train, tuple(labels))
