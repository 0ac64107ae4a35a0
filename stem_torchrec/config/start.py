"""What a new run takes from the one that it starts from."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.runtime.path_options import PathOption

NewRows = Literal["initial", "unseen", "mean"]
StartFrom = Annotated[str, PathOption("folder", endings=(":best",))]
"""A run, RUN:best, a checkpoint, or a folder of checkpoints or weights, local or in a store."""


@dataclass(frozen=True)
class StartConfig:
    """What a run takes over with --start-from."""

    new_rows: NewRows = "initial"
    """Where the rows of new ids start: initial draws them as those of a fresh table, unseen copies the row of id 0,
    mean takes the mean of the rows that are carried. Their optimizer states are fresh."""
    gate_bias: Annotated[float, Interval(ge=-1e6, le=1e6)] = -1e4
    """Logit of a new task's experts in the gates of the tasks that are carried. The default closes the gates to them
    exactly; at -5 they start with 0.7 % of the weight of an expert whose logit is 0, and the gates learn from there."""
    tables_from: str | None = None
    """A carried task, or shared, whose tables are copied into those of a new task; they start fresh by default."""
    hash_ids: bool = False
    """Lets a feature with a vocabulary become one with a hash, whose buckets each continue the row of their most
    frequent value, and a hashed one become one with a vocabulary, whose values continue the rows of their buckets."""
