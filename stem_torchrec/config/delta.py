"""What a run ships while it trains: deltas, which have what changed since the one before."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.runtime.path_options import OutputFolder

TablePrecision = Literal["fp32", "fp16", "int8"]
"""Numbers of tables that are served; int8 has a scale and an offset of its own in each row."""
RowFormat = Literal["safetensors", "parquet"]


@dataclass(frozen=True)
class DeltaConfig:
    """Deltas: all dense weights, and the rows of tables that changed since the delta before; the first has all rows."""

    steps: Annotated[int, Interval(ge=1, le=10**12)] | None = None
    """Steps between two deltas; without this and --delta.minutes there are none."""
    minutes: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    """Minutes between two deltas."""
    out: OutputFolder | None = None
    """Folder of the deltas, local or in a store, which get numbers from 0; by default RUN/deltas. A run that starts
    from another's last state may go on in that one's folder."""
    keep: Annotated[int, Interval(ge=2, le=10**6)] | None = None
    """Deltas to keep at least, the newest; older ones are removed, and every so many deltas one has all rows, so that
    every copy, and a new one, comes to the newest state. By default none is removed."""
    precision: TablePrecision = "fp32"
    """Of the rows. Copies and fp32 bundles take fp32 only; bundles of fp16 and int8 take fp32 and their own."""
    format: RowFormat = "safetensors"
    """Of the files of rows; the dense weights are safetensors in either."""

    @property
    def is_on(self) -> bool:
        """Whether the run writes deltas."""
        return self.steps is not None or self.minutes is not None
