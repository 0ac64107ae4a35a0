"""What state dicts call the tensors of tables.

...embedding_bags.like/uid.weight                      the weights of like/uid, in a model
...embedding_bags.like/uid.weight.exp_avg              a state of PyTorch's optimizers
...embedding_bags.like/uid.weight.like/uid.momentum1   a state of a fused optimizer, which repeats the table
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TENSOR = re.compile(
    r"(?P<prefix>(?:.*\.)?embedding_bags\.)(?P<table>[^.]+)\.weight(?:\.(?:(?P=table)\.)?(?P<state>.+))?"
)

# Other stacks also have EmbeddingCollections, whose tables are not pooled.
_WEIGHT_OF_ANY_COLLECTION = re.compile(r"embedding(?:_bag)?s\.(.+)\.weight$")


@dataclass(frozen=True)
class TableTensor:
    """The weights of a table, or one of its optimizer states.

    Example::

        TableTensor.parse("model.embedding_bags.like/uid.weight.like/uid.momentum1")
        # TableTensor(prefix="model.embedding_bags.", table="like/uid", state="momentum1")
    """

    prefix: str
    """What comes before the table's name."""
    table: str
    state: str | None = None
    """The optimizer's name of the state; None for the weights."""

    @classmethod
    def parse(cls, name: str) -> "TableTensor | None":
        """The tensor that a state dict calls `name`; None if it belongs to no table of an EmbeddingBagCollection."""
        match = _TENSOR.fullmatch(name)
        return None if match is None else cls(match["prefix"], match["table"], match["state"])

    @property
    def name(self) -> str:
        """The name in a state dict, without the repeated table of a fused optimizer."""
        return f"{self.prefix}{self.table}.weight" + ("" if self.state is None else f".{self.state}")


def table_of(name: str) -> str | None:
    """The table whose weights a state dict calls `name`; None if these are the weights of no table."""
    tensor = TableTensor.parse(name)
    return tensor.table if tensor is not None and tensor.state is None else None


def tables_among(names: Iterable[str]) -> list[str]:
    """The tables, in order of their names, whose weights are among `names`, in collections that pool or do not."""
    return sorted(match[1] for name in names if (match := _WEIGHT_OF_ANY_COLLECTION.search(name)))
