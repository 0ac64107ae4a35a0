"""Optimizers: in the backward pass for the tables, after it for the dense part.

The update of a table happens inside backward, on the rows that were looked up. That a task trains only its own and
the shared tables is therefore a promise about the bits of tables and of optimizer states: what would break it (moments
or decay on rows whose label is missing) raises an error unless it is enabled.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.config import DenseOptimizerConfig, LoopConfig, SparseOptimizerConfig
from stem_torchrec.models.weight_groups import frozen_groups, rate_factors
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.internals.pytorch import apply_optimizer_in_backward
from stem_torchrec.runtime.internals.torchrec_hooks import APART
from stem_torchrec.tables import sharded_collections, table_groups, table_of, table_weights
from stem_torchrec.training.dense_optimizer import build_dense_optimizer, tasks_that_train, with_moments
from stem_torchrec.training.frozen import is_frozen
from stem_torchrec.training.sparse_optimizers import SPARSE_OPTIMIZERS


@dataclass(frozen=True)
class TableOptimizer:
    """The optimizer of the tables, of which each has the learning rate of its groups."""

    config: SparseOptimizerConfig
    factors: Mapping[str, float] = field(default_factory=dict)
    """On the learning rates, by group."""
    frozen: frozenset[str] = frozenset()
    """Groups that are not trained."""

    def rates(self, table: str) -> dict[str, float]:
        """The learning rates of the groups in a table that are trained, which are one in a table that fits."""
        config = self.config
        return {
            group: config.group_learning_rates.get(group, config.learning_rate) * self.factors.get(group, 1.0)
            for group in table_groups(table)
            if group not in self.frozen
        }

    def arguments(self, table: str, *, fused: bool) -> dict[str, Any]:
        """What an optimizer of the table is made with: TorchRec's fused one, or torch's."""
        config = self.config
        arguments: dict[str, Any] = {"lr": next(iter(self.rates(table).values()), config.learning_rate)}
        if config.name != "sgd":
            arguments["eps"] = config.eps
        if config.weight_decay:
            arguments["weight_decay"] = config.weight_decay
            if config.name == "rowwise_adagrad":
                # Without a mode FBGEMM takes the decay and ignores it.
                arguments["weight_decay_mode"] = WeightDecayMode.L2
        if SPARSE_OPTIMIZERS[config.name].has_moments:
            betas = config.betas
            arguments |= {"beta1": betas[0], "beta2": betas[1]} if fused else {"betas": betas}
        if fused and is_frozen(table, self.frozen):
            arguments[APART] = "frozen"
        return arguments

    def check_packed(self, table: str) -> None:
        """Raises UserError where the groups in a table would not stay apart."""
        config, groups, optimizer = self.config, table_groups(table), SPARSE_OPTIMIZERS[self.config.name]
        if len(groups) > 1 and optimizer.per_row:
            raise UserError(
                f"{config.name} scales the step of a row by one number, so that in the packed table {table} a task's "
                "large gradient would shrink the steps of the others; choose --sparse.name adagrad or sgd, or "
                "--model.layout split."
            )
        rates = self.rates(table)
        if len(set(rates.values())) > 1:
            raise UserError(
                f"--sparse.group-learning-rates or --train.rate-factors differ in the packed table {table}, which has "
                "one learning rate: "
                f"{', '.join(f'{group} {rate:g}' for group, rate in rates.items())}; make them equal, or choose "
                "--model.layout split."
            )
        if 0 < len(rates) < len(groups) and (optimizer.has_moments or config.weight_decay):
            what = "a weight decay" if config.weight_decay else f"the moments of {config.name}"
            raise UserError(
                f"{what} would move what --train.freeze keeps in the packed table {table}; choose --sparse.name "
                "adagrad or sgd without decay, or --model.layout split."
            )


def apply_sparse_optimizer(
    model: nn.Module, config: SparseOptimizerConfig, *, factors: Mapping[str, float] | None = None
) -> None:
    """Puts the optimizer of every table of `model` into the backward pass; call it before planning and sharding.

    Args:
        model: in which groups may be frozen.
        config: the optimizer.
        factors: on the learning rates, by group.

    Raises UserError for a learning rate of a group that has no table, and for a packed table whose groups would not
    stay apart, or have different learning rates.
    """
    tables = table_weights(model)
    groups = {group for table in tables for group in table_groups(table)}
    for group in config.group_learning_rates:
        if group not in groups:
            known = ", ".join(sorted(groups))
            raise UserError(f"--sparse.group-learning-rates names the group {group!r}; the groups are {known}.")
    optimizer = TableOptimizer(config, factors or {}, frozen_groups(model))
    for table in tables:
        optimizer.check_packed(table)
    for table, weight in tables.items():
        # A fresh dict per table: TorchRec keeps and changes the one it gets.
        apply_optimizer_in_backward(
            SPARSE_OPTIMIZERS[config.name].fused, [weight], optimizer.arguments(table, fused=True)
        )


def build_optimizer(
    model: DistributedModelParallel,
    *,
    sparse: SparseOptimizerConfig,
    dense: DenseOptimizerConfig,
    train: LoopConfig | None = None,
) -> CombinedOptimizer:
    """The optimizers of a sharded model as one: fused tables, experts to towers, tables outside backward.

    Args:
        model: sharded, with `apply_sparse_optimizer` done before.
        sparse: the optimizer of the tables; those outside the fused one get the same after backward.
        dense: the optimizer of everything else.
        train: tells to which norm dense gradients are clipped, and the factors on learning rates.
    """
    train = train or LoopConfig()
    of_tables = {id(parameter) for _, module in sharded_collections(model) for parameter in module.parameters()}
    outside = dict(in_backward_optimizer_filter(model.named_parameters()))
    tables = {name: parameter for name, parameter in outside.items() if id(parameter) in of_tables}
    others = {name: parameter for name, parameter in outside.items() if id(parameter) not in of_tables}
    of_dense_part = build_dense_optimizer(
        others,
        dense,
        clip_norm=train.clip_norm,
        trained_by=tasks_that_train(model),
        factors=rate_factors(model, train.rate_factors),
    )
    optimizers = [model.fused_optimizer, *of_dense_part]
    if tables:
        kind = SPARSE_OPTIMIZERS[sparse.name]
        optimizer = TableOptimizer(sparse, train.rate_factors, frozen_groups(model))
        assert kind.dense is not None, "check_sparse_optimizer refuses it"
        groups = []
        for name, parameter in tables.items():
            table = table_of(name)
            assert table is not None, f"{name} is not a table"
            groups.append({"params": [parameter], **optimizer.arguments(table, fused=False)})
        made = kind.dense(groups)
        optimizers.append(KeyedOptimizerWrapper(tables, lambda _: with_moments(made) if kind.has_moments else made))
    return CombinedOptimizer(optimizers)
