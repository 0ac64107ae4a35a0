"""The log of a run, and how its rows become batches."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.config.synthetic import SyntheticConfig
from stem_torchrec.runtime.path_options import PathOption

OnBadRow = Literal["fail", "skip"]


@dataclass(frozen=True)
class DataConfig:
    """The log, and how rows become batches."""

    path: Annotated[str, PathOption("folder", words=("",))] | None = None
    """Folder with schema.json, train/ and valid/, local or in a store (s3://, gs://, abfs://, hdfs://). None makes the
    synthetic log below data/ once and uses that; a recipe for a log of your own needs the path."""
    batch_size: Annotated[int, Interval(ge=0, le=2**24)] = 4096
    """Rows per rank and step; the global batch is this times the world size. 0 chooses it by the number of rows and
    ranks."""
    eval_batch_size: Annotated[int, Interval(ge=1, le=2**24)] = 8192
    """Rows per rank and step in evaluation."""
    shuffle_rows: Annotated[int, Interval(ge=0, le=10**12)] = 262_144
    """Rows that are shuffled together: row groups in random order, then the rows of each run of row groups of at
    least this size. 0 keeps the order of the log."""
    num_workers: Annotated[int, Interval(ge=0, le=1024)] = 0
    """Reader processes per rank. With 0 a thread decodes the next rows while a step runs."""
    on_bad_row: OnBadRow = "fail"
    """What to do with a row that breaks the schema, and with the rows of a damaged part of a file: fail names the
    first and ends the run; skip leaves them out and counts them by reason."""
    max_bad_share: Annotated[float, Interval(ge=0, le=1)] = 0.001
    """Share of a rank's rows of an epoch that may be skipped before the run ends."""
    features: tuple[str, ...] = ()
    """Sparse features that get tables, by name; none means every one in schema.json."""
    labels: tuple[str, ...] = ()
    """Labels that become tasks, in this order; none means every one in schema.json."""
    spaces: dict[str, str] = field(default_factory=dict)
    """Tasks whose labels count only in rows where another label of the log is 1, with that label: `buy click`. In the
    other rows their labels are missing, in training and in every metric."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The synthetic log that a run without a path trains on; without effect where a path is given."""

    @property
    def skipped_share(self) -> float | None:
        """The share of bad rows to skip; None if the first one ends the run."""
        return self.max_bad_share if self.on_bad_row == "skip" else None
