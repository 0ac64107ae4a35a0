"""The command line of the offline planner, and the cluster that it describes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

from annotated_types import Interval
from torchrec.distributed.planner import Topology

from stem_torchrec.config import (
    Layout,
    ModelConfig,
    Precision,
    ShardingType,
    SparseOptimizerName,
    TrainConfig,
    parse_arguments,
)
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFile, LocalFolder, LocalOutput
from stem_torchrec.sharding.topology import Bandwidths, make_topology
from stem_torchrec.tables import SHARED
from stem_torchrec.training.configuration import load_config

from common.output import check_out
from common.table_list import TableSpec, check_labels, read_table_list

_DESCRIPTION = """\
Plans sharding on paper: which strategies fit a cluster that need not exist, with memory and estimated step by rank.

Bandwidths are in GB/s (10^9 bytes) for each rank, and --tflops in 10^12 operations a second. The defaults are data
sheet values of an H100, which no step quite reaches; --calibrate DIR takes the bandwidths that
`benchmarks/sharding.py --tables` measured."""

FIGURES = {
    "cuda": Bandwidths(hbm=3350, ddr=300, hbm_to_ddr=64, intra_host=450, inter_host=50),
    "cpu": Bandwidths(ddr=300, intra_host=50, inter_host=12.5),
}
"""cuda: H100 SXM (HBM3, PCIe gen 5 x16, NVLink 4 in one direction, a 400 Gbit/s NIC for each GPU) and DDR5 of a server.
cpu: the same DDR5, copies between processes, and a 100 Gbit/s NIC for each rank."""

TFLOPS: Mapping[str, Mapping[Precision, float]] = {
    "cuda": {"fp32": 67, "tf32": 495, "bf16": 990},
    "cpu": {"fp32": 3, "tf32": 3, "bf16": 3},
}
"""Operations of matrix products in 10^12 a second: of an H100 SXM without sparsity, and of 30 cores with AVX-512."""

GPU_SHARE = 0.85
"""Share of GPU memory that the planner fills; it keeps the rest for the dense part, activations and batches."""


_Gib = Annotated[float, Interval(ge=1e-3, le=1e6)]
_Tasks = Annotated[int, Interval(ge=1, le=1000)]
_Bandwidth = Annotated[float, Interval(ge=1e-6, le=1e9)]


@dataclass(frozen=True)
class PlanConfig:
    """The cluster, the tables, and what to compare."""

    tables: LocalFile = "benchmarks/tables/short_video.yaml"
    """A YAML list of features (name, rows, dim, pooling)."""
    out: LocalOutput = ""
    """Folder for report.md, report.parquet, growth.png, plan.json and a file for each plan. The same command resumes
    an interrupted search; it may have more strategies, hosts or growth."""
    config: LocalFile | None = None
    """config.yaml of a run, or one written by hand, whose model (experts, gates, towers), precision, input distribution
    and optimizer of the tables are planned; by default those of train.py without options."""
    nodes: tuple[Annotated[int, Interval(ge=1, le=100_000)], ...] = (1,)
    """Number of hosts; of several, all are planned and compared."""
    ranks_per_node: Annotated[int, Interval(ge=1, le=1024)] = 8
    """Ranks of a host: one per GPU, or processes on CPU."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Device of the tables; planning itself needs no GPU."""
    hbm_gb: _Gib = 80.0
    """GPU memory of a rank, in GiB. The planner keeps 15 % of it free for the rest of the model."""
    host_gb: _Gib = 200.0
    """Host memory for the tables of a rank, in GiB; on CUDA, tables that do not fit the GPU spill to it (UVM)."""
    tasks: _Tasks = 8
    """Number of tasks; every feature has a table for each task and a shared one."""
    labels: tuple[str, ...] = ()
    """Names of the first tasks, used in the names of the tables in plan.json; the others are task_1, task_2, ..."""
    batch_size: Annotated[int, Interval(ge=1, le=2**24)] = 4096
    """Rows per rank and step."""
    types: tuple[Literal["all", ShardingType], ...] = ("auto", "all")
    """Sharding types; all stands for all seven, auto lets the planner choose the type of each table."""
    layouts: tuple[Layout, ...] = ("split", "packed")
    """Layouts of the tables; packed needs an optimizer that updates each element independently."""
    optimizers: tuple[SparseOptimizerName, ...] = ()
    """Optimizers of the tables, whose state takes memory; by default that of --config."""
    grow_tasks: tuple[_Tasks, ...] = (2, 4, 8, 16)
    """Further numbers of tasks to plan for, with the recommended layout and optimizer."""
    grow_rows: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = (0.1, 1.0, 10.0)
    """Factors on the rows of all tables to plan for, with the recommended layout and optimizer."""
    seconds: Annotated[float, Interval(gt=0, le=1e6)] = 60.0
    """Seconds to search for each plan; the best one so far is then taken."""
    hbm: _Bandwidth | None = None
    """Bandwidth of GPU memory, in GB/s; 3350 by default."""
    ddr: _Bandwidth | None = None
    """Bandwidth of host memory for tables on CPU, in GB/s; 300 by default."""
    hbm_to_ddr: _Bandwidth | None = None
    """Bandwidth between GPU and host memory, in GB/s; 64 by default."""
    intra_host: _Bandwidth | None = None
    """Bandwidth between the ranks of a host, in GB/s; 450 by default, 50 on CPU."""
    inter_host: _Bandwidth | None = None
    """Bandwidth between hosts, in GB/s; 50 by default, 12.5 on CPU."""
    tflops: Annotated[float, Interval(gt=0, le=1e9)] | None = None
    """Matrix products of a rank in the precision of --config, in 10^12 operations a second; by default 67 in fp32, 495
    in tf32 and 990 in bf16, on CPU 3."""
    price: Annotated[float, Interval(gt=0, le=1e12)] | None = None
    """Price of a rank per hour, in any currency, for the cost of 10^9 samples."""
    calibrate: LocalFolder | None = None
    """Folder of `benchmarks/sharding.py --tables`, from whose results to fit the bandwidths of memory and links."""

    @property
    def bandwidths(self) -> Bandwidths:
        """The given bandwidths, and those of FIGURES for the others."""
        given = {field.name: getattr(self, field.name) for field in fields(Bandwidths)}
        return replace(FIGURES[self.device], **{name: value for name, value in given.items() if value is not None})

    def topology(self, nodes: int, bandwidths: Bandwidths) -> Topology:
        """A cluster of so many hosts in the terms of TorchRec's planner."""
        return make_topology(
            world_size=nodes * self.ranks_per_node,
            local_world_size=self.ranks_per_node,
            device=self.device,
            hbm_gib=self.hbm_gb if self.device == "cuda" else None,
            ddr_gib=self.host_gb,
            bandwidths=bandwidths,
        )


def read_options(args: Sequence[str] | None = None) -> tuple[PlanConfig, list[TableSpec], TrainConfig]:
    """The options, the tables, and the run that is planned; raises UserError for values that make no sense."""
    config = parse_arguments(PlanConfig(), args, description=_DESCRIPTION)
    check_out(config.out)
    for name in ("types", "layouts", "nodes"):
        if not getattr(config, name):
            raise UserError(f"--{name} is empty; leave it out for the default, --help shows the choices.")
    if len(config.labels) > config.tasks:
        raise UserError(f"--labels names {len(config.labels)} tasks, but --tasks is {config.tasks}; make them agree.")
    if config.labels:
        check_labels(config.labels, max(config.tasks, *config.grow_tasks), "--labels")
    train = load_config(config.config) if config.config is not None else TrainConfig()
    arch = train.model.arch
    if tuple(MODELS[arch].groups(("a", "b"))) != ("a", "b", SHARED):
        raise UserError(
            f"--config {config.config} has the model {arch}, whose tables are not those of each task and a shared one; "
            "give that of a stem, me_mmoe or me_ple."
        )
    optimizers = tuple(dict.fromkeys(config.optimizers)) or (train.sparse.name,)
    config = replace(config, optimizers=optimizers, nodes=tuple(dict.fromkeys(config.nodes)))
    tables, model = _own_tables(read_table_list(config.tables), train.model)
    return config, tables, replace(train, model=model)


def _own_tables(tables: list[TableSpec], model: ModelConfig) -> tuple[list[TableSpec], ModelConfig]:
    """The features with what a run chooses of their tables, and the model without it, whose dense part is the same.

    Raises UserError for a choice that no table list has.
    """
    if not isinstance(model, OwnTableOptions):
        return tables, model
    if model.table_groups or model.table_widths:
        raise UserError(
            "--config has --model.table-groups or .table-widths, which are not planned for; stem-train --dry-run plans "
            "such a run."
        )
    own = model.own_tables or tuple(table.name for table in tables)
    return [replace(table, own=table.own and table.name in own) for table in tables], replace(model, own_tables=())
