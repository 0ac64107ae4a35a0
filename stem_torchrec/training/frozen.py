"""Lookups of frozen tables, which end the backward pass.

A gradient of 0 is enough for SGD and Adagrad to leave a table alone, but moments and weight decay would move it. So
frozen tables are looked up by FBGEMM modules of their own, whose backward pass never runs. Their states stay where they
are: a checkpoint has them, and a later run trains on with them.
"""

from typing import Any

from torch import Tensor, nn

from stem_torchrec.models.weight_groups import frozen_groups
from stem_torchrec.runtime.internals.torchrec_hooks import lookups_of
from stem_torchrec.tables import sharded_collections, table_groups


def is_frozen(table: str, frozen: frozenset[str]) -> bool:
    """Whether all groups in a table are frozen; in a packed table trained ones may stand beside frozen ones."""
    return frozen.issuperset(table_groups(table))


def cut_lookups(model: nn.Module) -> None:
    """Ends the backward pass above the lookup of frozen tables; call it after sharding."""
    frozen = frozen_groups(model)
    for _, collection in sharded_collections(model):
        for tables, lookup in lookups_of(collection):
            if all(is_frozen(table, frozen) for table in tables):
                lookup.register_forward_hook(_without_backward)
            else:
                assert not any(is_frozen(table, frozen) for table in tables), "APART keeps them apart"


def _without_backward(module: nn.Module, args: Any, pooled: Tensor) -> Tensor:
    # It still takes a gradient, as all ranks exchange those of all tables, whether a rank has any to train or not.
    return pooled.detach().requires_grad_(pooled.requires_grad)
