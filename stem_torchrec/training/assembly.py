"""From a configuration to a sharded model and its pipeline."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import Topology
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.config import Precision, ShardingConfig, SparseOptimizerConfig, TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.balanced import balance_tasks
from stem_torchrec.models.build import build_model, start_links
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.models.weight_groups import check_rate_factors, freeze
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0, note_once
from stem_torchrec.sharding.placement import Placement, check_placements, match_rules, parse_rules, some
from stem_torchrec.sharding.plan import Plan, format_plan
from stem_torchrec.sharding.plan_file import read_plan
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.shard import shard
from stem_torchrec.sharding.sharder import make_sharder
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import table_configs
from stem_torchrec.training.dense_optimizer import leave_out_unlabeled
from stem_torchrec.training.frozen import cut_lookups
from stem_torchrec.training.nonfinite import SkippingPipeline
from stem_torchrec.training.optimizers import apply_sparse_optimizer
from stem_torchrec.training.sparse_optimizers import SPARSE_OPTIMIZERS, check_sparse_optimizer


def build_sharded_model(
    config: TrainConfig,
    columns: Columns,
    process: Process,
    *,
    labels_missing: bool = False,
    ids_per_row: Mapping[str, float] | None = None,
    statistics: Mapping[str, tuple[float, ...]] | None = None,
    trains: bool = True,
    shows_plan: bool = True,
) -> tuple[DistributedModelParallel, Plan]:
    """The model with its loss, sharded over the ranks, and the plan.

    Args:
        config: the run.
        columns: the columns of the log.
        process: this rank.
        labels_missing: whether the log has rows without a label for some task.
        ids_per_row: mean number of ids in a row by feature, for the planner's estimates; 1 where not given.
        statistics: what the outputs of tasks that are not binary start from, see `RunData.label_statistics`.
        trains: whether the model is trained; finding which tasks train a parameter takes seconds in a wide model.
        shows_plan: whether rank 0 prints the plan.

    Raises UserError where the sparse optimizer does not serve the tables, an option names a group that the model does
    not have, or no plan fits; see `plan_sharding`.
    """
    if config.train.deterministic:
        _make_deterministic()
    torch.manual_seed(config.seed)
    model = build_model(config.model, columns, config.loss)
    if statistics is not None:
        start_links(model, statistics)
    if trains:
        _prepare_training(model, config, columns)
    tables = table_configs(model)
    topology = topology_here(process, hbm_gib=config.sharding.hbm_gb)
    placements = from_first_rank(lambda: choose_placements(config.sharding, tables, topology))
    fit_sparse_optimizer(model, config, placements, device=process.device, labels_missing=labels_missing)
    sharder = make_sharder(input_dist=config.sharding.input_dist, communication=config.sharding.communication)
    per_row = SPARSE_OPTIMIZERS[config.sparse.name].per_row
    plan = plan_sharding(
        model,
        topology=topology,
        batch_size=config.data.batch_size,
        placements=placements,
        sharder=sharder,
        whole_rows=per_row,
        pooling_factors=ids_per_row,
    )
    if shows_plan:
        log_rank0(format_plan(plan))
    cut = [table.name for table in plan.tables if any(shard.columns < table.dim for shard in table.shards)]
    if per_row and cut:
        log_rank0(
            f"note: {config.sparse.name} keeps a number per row and column shard, so {some(cut)} learn differently"
        )
    sharded = shard(model, plan.sharding_plan, device=process.device, seed=config.seed, sharder=sharder)
    cut_lookups(sharded)
    # From here on ranks draw different numbers, for dropout.
    torch.manual_seed(config.seed + process.rank)
    return sharded, plan


def fit_sparse_optimizer(
    model: nn.Module,
    config: TrainConfig,
    placements: Mapping[str, Placement],
    *,
    device: torch.device,
    labels_missing: bool,
) -> None:
    """Gives a model's tables their optimizer in the backward pass, before they are sharded.

    Raises UserError where it does not serve the tables as they are placed, or an option names a group without a table.
    """
    kinds = {p.sharding_type == "data_parallel" or p == Placement("auto", "dense") for p in placements.values()}
    for dense in sorted(kinds):
        check_sparse_optimizer(config.sparse, device=device, dense_kernel=dense, labels_missing=labels_missing)
    apply_sparse_optimizer(model, config.sparse, factors=config.train.rate_factors)


def _prepare_training(model: MultiTaskTrain, config: TrainConfig, columns: Columns) -> None:
    """Freezes groups, finds which tasks train a parameter, and balances the tasks."""
    assert isinstance(model.model, MultiTaskModel)
    freeze(model.model, config.train.freeze)
    check_rate_factors(model.model, config.train.rate_factors)
    model.trained_by = tasks_of_parameters(model, tasks=len(columns.labels), dense_in_features=len(columns.dense))
    balance_tasks(model, config.balance)  # After the backward passes that tell which tasks train a parameter.


def _make_deterministic() -> None:
    """Lets torch and FBGEMM add in one order on GPUs, and warn where they cannot; before the first operation there."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it.
    torch.use_deterministic_algorithms(True, warn_only=True)


def for_weights_only(config: TrainConfig) -> TrainConfig:
    """The configuration of the same model, to load its weights without training.

    It has an optimizer without states and no plan: the run's own plan may name other ranks, devices or tables.
    """
    return replace(
        config,
        sparse=SparseOptimizerConfig(name="sgd"),
        train=replace(config.train, freeze=(), rate_factors={}),
        sharding=replace(config.sharding, rules=(), plan=None, kernel="auto"),
    )


def choose_placements(
    config: ShardingConfig, tables: Sequence[EmbeddingBagConfig], topology: Topology
) -> dict[str, Placement]:
    """The placement of each table by `--sharding`; raises UserError where it does not fit the tables or the ranks."""
    if config.plan is not None:
        if config.rules or config.type != "auto" or config.kernel != "auto":
            raise UserError("--sharding.plan pins every table; leave out --sharding.rules, .type and .kernel.")
        return read_plan(config.plan, tables, topology)
    placements = placements_by_rules(config, tables)
    check_placements(placements, device=topology.compute_device, world_size=topology.world_size)
    return placements


def placements_by_rules(config: ShardingConfig, tables: Sequence[EmbeddingBagConfig]) -> dict[str, Placement]:
    """The placement of each table by `--sharding`, without a plan; raises UserError for a rule that no table meets."""
    default = Placement(config.type, config.kernel)
    return match_rules(parse_rules(config.rules), [table.name for table in tables], default)


def build_pipeline(
    model: DistributedModelParallel,
    optimizer: CombinedOptimizer,
    config: TrainConfig,
    process: Process,
    *,
    forward: Callable[[Any], Any] | None = None,
) -> TrainPipelineSparseDist:
    """The pipeline: copy of batch i+2, input distribution of batch i+1, forward and backward of batch i.

    `forward` is what `autocast_forward` returns for the model, for a caller that needs it as well. Raises UserError
    where the device does not have the precision.
    """
    forward = forward or autocast_forward(model, config.train.precision, process)
    kind = SkippingPipeline if config.train.skip_nonfinite else TrainPipelineSparseDist
    pipeline = kind(model, optimizer, process.device, custom_model_fwd=forward)
    leave_out_unlabeled(optimizer, pipeline, model)
    return pipeline


def autocast_forward(model: nn.Module, precision: Precision, process: Process) -> Callable[[Any], Any]:
    """`model` with its matrix products in `precision`; for tf32 that is a setting of the process.

    Raises UserError for tf32 on CPU.
    """
    device = process.device.type
    if precision == "tf32" and device == "cpu":
        raise UserError(
            "tf32 is a format of NVIDIA GPUs; on CPU choose --train.precision fp32 or bf16, or --precision to evaluate."
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision == "bf16" and device == "cpu" and not torch.cpu.get_capabilities().get("amx_bf16", False):
        note_once(
            "note: this CPU multiplies bf16 without AMX, measured at half the speed of fp32; --train.precision fp32"
        )

    def forward(batch: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return model(batch)

    return forward
