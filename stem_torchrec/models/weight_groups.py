"""The group that a weight belongs to, by its name, and groups that a run does not train.

layers.0.experts.like.2.weight       like      the key of a group in an nn.ModuleDict
...embedding_bags.like/uid.weight    like      a table
bottom.0.weight                      shared    everything else
"""

import re
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.tables import SHARED, TableTensor, groups_of, table_group, table_of

_BY_GROUP = re.compile(
    r"(?:^|\.)(?:dense_arch|experts|gates|self_gates|towers|further_towers|bottoms|transfers|links)\.([^.]+)\."
)
"""The parts of the models of table.py that hold a module for each group."""


def group_of(name: str, groups: Collection[str]) -> str:
    """The group among `groups` that a weight belongs to; of a packed table, its groups joined by +.

    Args:
        name: of the weight in a state dict.
        groups: the model's tasks, and shared.

    Example::

        group_of("model.towers.like.0.weight", ["finish", "like", "shared"])  # "like"
    """
    tensor = TableTensor.parse(name)
    if tensor is not None:
        return table_group(tensor.table)
    part = _BY_GROUP.search(name)
    # In a model of one's own any key may be a group. Numbers are layers, and the last key is a parameter.
    keys = [part[1]] if part else [key for key in name.split(".")[1:-1] if not key.isdigit()]
    return next((key for key in keys if key in groups), SHARED)


def groups_with_weights(model: MultiTaskModel) -> tuple[str, ...]:
    """The tasks, further groups of tables, and shared unless every weight is a task's."""
    groups = tuple(dict.fromkeys([*model.tasks, *model.sparse_arch.groups, *groups_of(model.tasks)]))
    owners = "+".join(group_of(name, groups) for name, _ in model.named_parameters()).split("+")
    return tuple(group for group in groups if group in owners)


def freeze(model: MultiTaskModel, groups: Collection[str]) -> None:
    """Ends the training of some groups: no loss gives their tables or other weights a gradient.

    Call it before sharding, since DistributedModelParallel waits for the gradients of what is trained then.

    Raises UserError for a group that the model does not have, or where none would be left to train.
    """
    known = groups_with_weights(model)
    check_groups_exist("--train.freeze", groups, known)
    if not set(known) - set(groups):
        raise UserError(f"--train.freeze names all groups, {', '.join(known)}; leave out those that the run trains.")
    model.frozen = frozenset(groups)
    for name, parameter in model.named_parameters():
        if table_of(name) is None and group_of(name, known) in groups:
            parameter.requires_grad_(False)


def check_rate_factors(model: MultiTaskModel, groups: Collection[str]) -> None:
    """Raises UserError for a factor on the learning rate of a group that the model does not have, or that is frozen."""
    check_groups_exist("--train.rate-factors", groups, groups_with_weights(model))
    for group in groups:
        if group in model.frozen:
            raise UserError(f"--train.rate-factors names {group!r}, which --train.freeze does not train; leave it out.")


def check_groups_exist(option: str, named: Collection[str], known: Collection[str]) -> None:
    """Raises UserError for the first of the groups that an option names and the model does not have."""
    for group in named:
        if group not in known:
            raise UserError(
                f"{option} names the group {group!r}, but the model has only {', '.join(known)}"
                f"{nearest(group, list(known)) or '.'}"
            )


def frozen_groups(train: nn.Module) -> frozenset[str]:
    """The groups that are frozen in a model with its loss, sharded or not."""
    return frozenset().union(*(model.frozen for model in _models(train)))


def rate_factors(train: nn.Module, by_group: Mapping[str, float]) -> dict[str, float]:
    """The factors on the learning rates of weights by name, from those by group, of a model with its loss."""
    groups = groups_of([task for model in _models(train) for task in model.tasks]) if by_group else ()
    return {name: by_group.get(group_of(name, groups), 1.0) for name, _ in train.named_parameters()}


def _models(train: nn.Module) -> Iterator[MultiTaskModel]:
    return (module for module in train.modules() if isinstance(module, MultiTaskModel))
