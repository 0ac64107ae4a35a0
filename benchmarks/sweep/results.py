"""What a sweep measures, kept case by case in a folder, so that an interrupted sweep can be resumed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.recorded_options import AsOfNow

from common.output import make_folder, record_identity, write_whole
from sweep.cases import Case

SWEEP_FILE = "sweep.json"
CASES = "cases"

TABLE_BATCHES = 10
"""Batches that a table alone is timed with, after one that is not timed."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class TableTime:
    """The time of one table alone: lookup and exchange of embeddings, forward and backward."""

    name: str
    rows: int
    dim: int
    type: str
    """Sharding type."""
    kernel: str
    ranks: tuple[int, ...]
    """Rank of each shard."""
    estimate_ms: float
    """The planner's estimate for its slowest shard."""
    ms: Numbers
    """Of each batch, until the last rank ended it."""


@dataclass(frozen=True)
class Measurement:
    """What the ranks of one case measured; times are in ms, and tuples are by rank or by step."""

    step_ms: tuple[Numbers, ...]
    """By rank, the time of each measured step."""
    lookup_ms: tuple[Numbers, ...]
    """By rank, the time of each lookup and exchange of embeddings and gradients, without the rest of the step."""
    losses: Numbers
    """The loss of every step, warm-up included: the mean over the ranks, summed over the tasks."""
    ids: Numbers
    """Bytes of ids and lengths that each rank sends in a step."""
    embeddings: Numbers
    """Bytes of pooled embeddings that each rank sends in a step."""
    gradients: Numbers
    """Bytes of their gradients that each rank sends in a step; with data_parallel what a ring all-reduce sends."""
    memory_before: Numbers
    """Resident MiB of each rank after the batches are made and before the model is built."""
    memory_peak: Numbers
    """Peak of resident MiB of each rank from then on."""
    device_memory_peak: Numbers
    """Peak of MiB allocated on each rank's GPU; 0 without a GPU."""
    weights: Numbers
    """MiB of tables on each rank."""
    compute: Numbers
    """The planner's estimate of the lookup and its backward by rank, in ms."""
    communication: Numbers
    """The planner's estimate of the exchange of embeddings and gradients by rank, in ms."""
    plan: str
    """The plan, as plan_to_json writes it."""
    tables: str
    """Number of tables by type, as in `row_wise 3, table_wise 27`."""
    device: str
    """Name of the GPU, or cpu."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the batches."""
    by_table: tuple[TableTime, ...] = ()
    """Each table alone; measured in the first round."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended in one round."""

    case: Case
    round: int
    status: str
    """ok, refused (by a UserError), failed (by another error), killed (by a signal), or timeout."""
    reason: str
    """Why the status is not ok; empty if it is."""
    seconds: float
    """From start to end, imports included."""
    date: str
    revision: str
    """Git revision of the code; empty outside a checkout."""
    load: float
    """Mean number of running processes in the minute before, those of earlier cases included."""
    measurement: Measurement | None = None
    load_after: float | None = None
    """The same in the minute that ends with the case, the processes of the case included."""
    others: float | None = None
    """Cores that processes outside of the sweep kept busy during the case, on the host where they did so the most."""
    cores: int | None = None
    """Cores of rank 0's host that the sweep may use."""


class ResultFolder:
    """The folder of one sweep: sweep.json describes the sweep, cases/ has an outcome for each case and round.

    Args:
        folder: is made if it does not exist.
        sweep: identifies the sweep, in values that JSON can represent.
        head: is for the reader of the report; it may differ when the sweep is resumed, and the first one is kept.
        as_of_now: completes what an earlier version wrote of `sweep`; see `check_recorded`.

    Raises UserError if the folder holds another sweep or cannot be written.
    """

    def __init__(
        self, folder: Path, sweep: Mapping[str, Any], head: Mapping[str, Any], *, as_of_now: AsOfNow = dict
    ) -> None:
        self.folder = folder
        try:
            (make_folder(str(folder)) / CASES).mkdir(parents=True, exist_ok=True)
            self.head = self._open(sweep, head, as_of_now)
        except OSError as error:
            raise UserError(
                f"the results cannot be written to {folder} ({error.strerror}); give another --out."
            ) from error

    def _open(self, sweep: Mapping[str, Any], head: Mapping[str, Any], as_of_now: AsOfNow) -> dict[str, Any]:
        path = self.folder / SWEEP_FILE
        if not path.exists() and any((self.folder / CASES).iterdir()):
            raise UserError(f"{self.folder / CASES} holds files that no sweep wrote; give another --out.")
        return record_identity(path, sweep, head, kind="sweep", as_of_now=as_of_now)

    def path(self, case: Case, round_: int, suffix: str) -> Path:
        """The path of a file of one case and round, by its suffix."""
        return self.folder / CASES / f"{case.name.replace('/', '.')}.{round_}{suffix}"

    def read(self, case: Case, round_: int) -> Outcome | None:
        """The outcome of a case in a round, or None; raises UserError for a file that is not an outcome."""
        path = self.path(case, round_, ".json")
        if not path.exists():
            return None
        try:
            return from_dict(Outcome, parse_json(path.read_text()))
        except ValueError as error:
            raise UserError(
                f"{path} is not a result of this sweep ({error}); delete it to measure the case again."
            ) from error

    def write(self, outcome: Outcome) -> None:
        """Writes the outcome, completely or not at all."""
        write_whole(self.path(outcome.case, outcome.round, ".json"), json.dumps(to_dict(outcome)) + "\n")

    def read_all(self, cases: Sequence[Case], rounds: int) -> list[Outcome]:
        """All existing outcomes, in the order of the cases and rounds."""
        outcomes = (self.read(case, round_) for case in cases for round_ in range(rounds))
        return [outcome for outcome in outcomes if outcome is not None]
