"""What a run began with, if it goes on with the deltas of another one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Began:
    """The state of another run that a run began with."""

    run: str
    """The folder of that run."""
    run_id: str
    """Its id."""
    step: int | None
    """Steps that it had made; None for its best weights."""
    carried: Mapping[str, int] = field(default_factory=dict)
    """By feature: its first rows, which are the same rows of the other run's tables; 0 where it is not listed."""

    def fresh_rows(self, feature: str, rows: int) -> Tensor:
        """The rows of a feature that are not the other run's."""
        return torch.arange(self.carried.get(feature, 0), rows)
