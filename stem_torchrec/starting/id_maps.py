"""Which row of an old table each row of a feature's new tables continues."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class IdMap:
    """Which old row each row of a feature's new tables continues."""

    old_rows: int
    """Rows of the feature's tables in the source."""
    new_rows: int
    """Rows of them in this run."""
    rows: Tensor | None = None
    """int64 of shape (new_rows,): the old row, or -1 for a new id. None: row i continues row i for
    i < min(old_rows, new_rows)."""
    how: str = "same ids"
    """For the table of what is carried: "same ids", "30 new ids", "matched by value", "hashed", ..."""
