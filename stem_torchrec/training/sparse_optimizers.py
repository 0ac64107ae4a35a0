"""The optimizers that tables can have: where each runs, what it keeps, and whether it keeps the tasks apart."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torchrec.optim as trec_optim

from stem_torchrec.config import SparseOptimizerConfig
from stem_torchrec.runtime.errors import UserError


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
    if config.decay_whole_tables and (name != "adam" or not dense_kernel):
        raise UserError(
            f"--sparse.decay-whole-tables is set, but {name} does not decay rows that were not looked up; choose "
            "--sparse.name adam with --sharding.kernel dense, or leave it out."
        )
    if decay and dense_kernel and not config.decay_whole_tables:
        raise UserError(
            f"--sparse.weight-decay is {decay}, but outside the fused optimizer it would decay every row, not only "
            "those looked up; set it to 0 or use fused tables, or allow it for adam with --sparse.decay-whole-tables."
        )
    # On CPU, FBGEMM takes a decay and ignores it.
    if decay and not dense_kernel and (not optimizer.has_decay or device.type == "cpu"):
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
