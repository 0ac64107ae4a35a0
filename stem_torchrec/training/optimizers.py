"""Optimizers: in the backward pass for the tables, after it for the dense part, and one schedule over both.

The update of a table happens inside backward, on the rows that were looked up. That a task trains only its own and
the shared tables is therefore a promise about the bits of tables and of optimizer states: what would break it (moments
or decay on rows whose label is missing) raises an error unless it is enabled.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torchrec.optim as trec_optim
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.config import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.internals.pytorch import apply_optimizer_in_backward
from stem_torchrec.tables import sharded_collections, table_groups, table_of, table_weights
from stem_torchrec.training.dense_optimizer import build_dense_optimizer, tasks_that_train


@dataclass(frozen=True, kw_only=True)
class SparseOptimizer:
    """An optimizer of tables: what FBGEMM fuses, and what does the same after backward."""

    fused: type[torch.optim.Optimizer]
    """Names the FBGEMM optimizer."""
    dense: Callable[..., torch.optim.Optimizer] | None
    """The same for data_parallel tables and the dense kernel; None where torch has no such optimizer."""
    on_cpu: bool
    """Whether FBGEMM fuses it on CPU."""
    has_moments: bool
    """Whether a row that was looked up moves although its gradient is zero."""
    states: tuple[Literal["element", "row"], ...]
    """What each of its states holds a number for."""
    has_decay: bool = True
    """Whether FBGEMM decays with it on CUDA."""
    needs_decay: bool = False
    """Whether it divides by the length of a row's step, which without a decay is 0 in a row without a gradient."""
    per_row: bool = False
    """Whether one number couples the elements of a row: an accumulator that is kept for each row, or the norm of the
    row's step (LAMB). A column shard is a row of its own; the tasks in a packed row would reach into each other."""


SPARSE_OPTIMIZERS: Mapping[str, SparseOptimizer] = {
    "sgd": SparseOptimizer(
        fused=trec_optim.SGD, dense=torch.optim.SGD, on_cpu=True, has_moments=False, has_decay=False, states=()
    ),
    "adagrad": SparseOptimizer(
        fused=trec_optim.Adagrad, dense=torch.optim.Adagrad, on_cpu=True, has_moments=False, has_decay=False,
        states=("element",),
    ),
    "rowwise_adagrad": SparseOptimizer(
        fused=trec_optim.RowWiseAdagrad, dense=trec_optim.RowWiseAdagrad, on_cpu=True, has_moments=False, per_row=True,
        states=("row",),
    ),
    "adam": SparseOptimizer(
        fused=trec_optim.Adam, dense=torch.optim.Adam, on_cpu=False, has_moments=True, states=("element", "element")
    ),
    "lamb": SparseOptimizer(
        fused=trec_optim.LAMB, dense=None, on_cpu=False, has_moments=True, per_row=True, needs_decay=True,
        states=("element", "element"),
    ),
    "partial_rowwise_adam": SparseOptimizer(
        fused=trec_optim.PartialRowWiseAdam, dense=None, on_cpu=False, has_moments=True, per_row=True,
        states=("element", "row"),
    ),
}  # fmt: skip


def states_of_tables(sizes: Iterable[tuple[int, ...]], name: str) -> int:
    """How many numbers an optimizer keeps for tables of some sizes (N, D) that are not cut by columns."""
    states = SPARSE_OPTIMIZERS[name].states
    return sum(rows * (columns if each == "element" else 1) for rows, columns in sizes for each in states)


def check_sparse_optimizer(
    config: SparseOptimizerConfig, *, device: torch.device, dense_kernel: bool, labels_missing: bool
) -> None:
    """Raises UserError where the optimizer cannot run on `device`, or would break the isolation of tasks.

    Args:
        config: the optimizer of the tables.
        device: where the tables live.
        dense_kernel: whether tables are updated after backward (data_parallel, the dense kernel).
        labels_missing: whether the log has rows without a label for some task.
    """
    name, decay, optimizer = config.name, config.weight_decay, SPARSE_OPTIMIZERS[config.name]
    if dense_kernel and optimizer.dense is None:
        raise UserError(f"{name} runs only fused; choose sgd, adagrad, rowwise_adagrad or adam for dense tables.")
    if not dense_kernel and device.type == "cpu" and not optimizer.on_cpu:
        dense = " or add --sharding.kernel dense, which walks whole tables in every step" if optimizer.dense else ""
        raise UserError(f"FBGEMM does not fuse {name} on CPU; choose sgd, adagrad or rowwise_adagrad{dense}.")
    if decay and dense_kernel:
        raise UserError(
            f"--sparse.weight-decay is {decay}, but outside the fused optimizer it would decay every row, not only "
            "those looked up; set it to 0 or use fused tables."
        )
    # On CPU, FBGEMM takes a decay and ignores it.
    if decay and (not optimizer.has_decay or device.type == "cpu"):
        raise UserError(
            f"--sparse.weight-decay is {decay}, but FBGEMM has none for {name} on {device.type}; set it to 0."
        )
    if config.eps <= 0 and name != "sgd":
        raise UserError(f"--sparse.eps is {config.eps}, but must be above 0, or rows without a gradient divide 0 by 0.")
    if optimizer.needs_decay and not decay:
        raise UserError(
            f"--sparse.weight-decay is 0, but must be above 0 for {name}, or FBGEMM divides 0 by 0 in rows without a "
            "gradient, and loses them."
        )
    if labels_missing and (optimizer.has_moments or decay) and not config.update_unlabeled_rows:
        what = f"--sparse.weight-decay {decay}" if decay else f"the moments of {name}"
        raise UserError(
            f"labels are missing in this log, and {what} would change a task's table rows without its label; choose "
            "sgd, adagrad or rowwise_adagrad without decay, or allow it with --sparse.update-unlabeled-rows."
        )


def apply_sparse_optimizer(model: nn.Module, config: SparseOptimizerConfig) -> None:
    """Puts the optimizer of every table of `model` into the backward pass; call it before planning and sharding.

    Raises UserError for a learning rate of a group that has no table, and for a packed table whose groups would not
    stay apart, or have different learning rates.
    """
    tables = table_weights(model)
    groups = {group for table in tables for group in table_groups(table)}
    for group in config.group_learning_rates:
        if group not in groups:
            known = ", ".join(sorted(groups))
            raise UserError(f"--sparse.group-learning-rates names the group {group!r}; the groups are {known}.")
    for table in tables:
        _check_packed(config, table)
    for table, weight in tables.items():
        # A fresh dict per table: TorchRec keeps and changes the one it gets.
        apply_optimizer_in_backward(
            SPARSE_OPTIMIZERS[config.name].fused, [weight], _arguments(config, table, fused=True)
        )


def build_optimizer(
    model: DistributedModelParallel,
    *,
    sparse: SparseOptimizerConfig,
    dense: DenseOptimizerConfig,
    clip_norm: float | None = None,
) -> CombinedOptimizer:
    """The optimizers of a sharded model as one: fused tables, experts to towers, tables outside backward.

    Args:
        model: sharded, with `apply_sparse_optimizer` done before.
        sparse: the optimizer of the tables; those outside the fused one get the same after backward.
        dense: the optimizer of everything else.
        clip_norm: largest norm of the dense gradient, of the parameters that the same tasks train.
    """
    of_tables = {id(parameter) for _, module in sharded_collections(model) for parameter in module.parameters()}
    outside = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: parameter for name, parameter in outside.items() if id(parameter) in of_tables}
    others = {name: parameter for name, parameter in outside.items() if id(parameter) not in of_tables}
    dense_optimizers = build_dense_optimizer(others, dense, clip_norm=clip_norm, trained_by=tasks_that_train(model))
    optimizers = [model.fused_optimizer, *dense_optimizers]
    if tables:
        make_tables = SPARSE_OPTIMIZERS[sparse.name].dense
        assert make_tables is not None, "check_sparse_optimizer refuses it"
        groups = []
        for name, parameter in tables.items():
            table = table_of(name)
            assert table is not None, f"{name} is not a table"
            groups.append({"params": [parameter], **_arguments(sparse, table, fused=False)})
        optimizers.append(KeyedOptimizerWrapper(tables, lambda _: make_tables(groups)))
    return CombinedOptimizer(optimizers)


def build_schedule(optimizer: CombinedOptimizer, config: ScheduleConfig, *, steps: int, made: int = 0) -> LambdaLR:
    """The factor on every learning rate: a linear warm-up from 0, then constant or down to 0 at `steps`.

    The run resumes after `made` steps; the optimizer has the learning rates of the first step.

    Step it after the optimizer. The pipeline's `zero_grad` pushes the new rate into the fused tables before the
    next backward.
    """
    warmup, decay = config.warmup_steps, config.decay

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min((step - warmup) / max(steps - warmup, 1), 1.0)
        return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[decay]

    schedule = LambdaLR(optimizer, factor)
    schedule.last_epoch = made
    for group, base in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
        group["lr"] = base * factor(made)
    return schedule


def _check_packed(config: SparseOptimizerConfig, table: str) -> None:
    """Raises UserError where the groups in a table would not stay apart."""
    groups = table_groups(table)
    if len(groups) > 1 and SPARSE_OPTIMIZERS[config.name].per_row:
        raise UserError(
            f"{config.name} scales the step of a row by one number, so that in the packed table {table} a task's large "
            "gradient would shrink the steps of the others; choose --sparse.name adagrad or sgd, or --model.layout "
            "split."
        )
    rates = {group: _learning_rate(config, group) for group in groups}
    if len(set(rates.values())) > 1:
        raise UserError(
            f"--sparse.group-learning-rates differ in the packed table {table}, which has one learning rate: "
            f"{', '.join(f'{group} {rate:g}' for group, rate in rates.items())}; make them equal, or choose "
            "--model.layout split."
        )


def _learning_rate(config: SparseOptimizerConfig, group: str) -> float:
    return config.group_learning_rates.get(group, config.learning_rate)


def _arguments(config: SparseOptimizerConfig, table: str, *, fused: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {"lr": _learning_rate(config, table_groups(table)[0])}
    if config.name != "sgd":
        arguments["eps"] = config.eps
    if config.weight_decay:
        arguments["weight_decay"] = config.weight_decay
        if config.name == "rowwise_adagrad":
            # Without a mode FBGEMM takes the decay and ignores it.
            arguments["weight_decay_mode"] = WeightDecayMode.L2
    if SPARSE_OPTIMIZERS[config.name].has_moments:
        arguments |= {"beta1": config.betas[0], "beta2": config.betas[1]} if fused else {"betas": config.betas}
    return arguments
