"""What a new run starts from: a run, a checkpoint or weights, local or in a store."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import Schema


@dataclass(frozen=True)
class StartSource:
    """A folder of weights, with optimizer states if it is a checkpoint, and what is known of its run."""

    name: str
    """For messages, as the user gave it."""
    weights: str
    """Folder of torch.distributed.checkpoint, with tensors `model.*` and, in a checkpoint, `optimizer.*.*`."""
    has_states: bool
    """Whether optimizer states are read from it; not for the best weights, nor for bare weights."""
    config: TrainConfig | None = None
    """Of the run that it belongs to; None for a bare folder of weights."""
    schema: Schema | None = None
    """Of the log of that run."""
    columns: Columns | None = None
    """`Columns.select(schema, features=..., labels=...)` of that run."""
    step: int | None = None
    """Steps that the run had made."""
    lineage: Mapping[str, Any] = field(default_factory=dict)
    """What start.json tells of it."""
