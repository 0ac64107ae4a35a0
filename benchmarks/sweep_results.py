"""What a sweep measures, kept case by case in a folder, so that an interrupted sweep goes on where it stopped."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dacite

from stem_torchrec.errors import UserError
from stem_torchrec.plain import from_plain, to_plain

from sweep_cases import Case

SWEEP_FILE = "sweep.json"
CASES = "cases"

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Measurement:
    """What the ranks of one case measured; times are in ms, a tuple by rank or by step."""

    step_ms: tuple[Numbers, ...]
    """By rank, of each measured step."""
    lookup_ms: tuple[Numbers, ...]
    """By rank, of each lookup and exchange of embeddings and gradients without the rest of the step."""
    losses: Numbers
    """The loss over all ranks in every step from the first on, summed over the tasks."""
    ids: Numbers
    """Bytes of ids and lengths that leave each rank in a step."""
    embeddings: Numbers
    """The same of pooled embeddings."""
    gradients: Numbers
    """The same of their gradients; of data_parallel tables, what a ring all-reduce sends."""
    memory_before: Numbers
    """Resident MiB of each rank with the batches, before the model is built."""
    memory_peak: Numbers
    """The most resident MiB of each rank from then on."""
    device_memory_peak: Numbers
    """The most MiB allocated on each rank's GPU; 0 without one."""
    weights: Numbers
    """MiB of tables on each rank."""
    compute: Numbers
    """The planner's estimate of the lookup and its backward by rank, in ms."""
    communication: Numbers
    """The same of the exchange of embeddings and gradients."""
    plan: str
    """The plan, as plan_to_json writes it."""
    tables: str
    """How many tables have which type, as `table_wise 30`."""
    device: str
    """The GPU's name, or cpu."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a case went in one round."""

    case: Case
    round: int
    status: str
    """ok, refused (our own sentence), failed (another error), killed (by a signal), or timeout."""
    reason: str
    seconds: float
    """From start to end, with imports."""
    date: str
    revision: str
    """Of the code, from git; empty without one."""
    load: float
    """Mean number of running processes over the minute before."""
    measurement: Measurement | None = None


class ResultFolder:
    """The folder of one sweep: sweep.json says what is swept, cases/ holds an outcome for each case and round.

    Args:
        folder: where it is, or is to be.
        sweep: what is swept, as JSON can say it; `head` is for the reader and may differ.

    Raises UserError where the folder holds another sweep, or cannot be written.
    """

    def __init__(self, folder: Path, sweep: Mapping[str, Any], head: Mapping[str, Any]) -> None:
        self.folder = folder
        try:
            (folder / CASES).mkdir(parents=True, exist_ok=True)
            self.head = self._open(sweep, head)
        except OSError as error:
            raise UserError(
                f"the results cannot be written to {folder} ({error.strerror}); give another --out."
            ) from error

    def _open(self, sweep: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
        path = self.folder / SWEEP_FILE
        here = json.loads(json.dumps(sweep))
        if not path.exists():
            if any((self.folder / CASES).iterdir()):
                raise UserError(f"{self.folder / CASES} holds files of something else; give another --out.")
            write_whole(path, json.dumps({"sweep": here, "head": head}, indent=1))
        try:
            content = json.loads(path.read_text())
            there, kept = content["sweep"], content["head"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no sweep ({error!r}); give another --out.") from error
        if difference := _difference(there, here):
            raise UserError(
                f"{self.folder} holds another sweep, where {difference}; give another --out, or the same command."
            )
        return kept

    def path(self, case: Case, round_: int, suffix: str) -> Path:
        """A file of one case and round; the suffix says which."""
        return self.folder / CASES / f"{case.name.replace('/', '.')}.{round_}{suffix}"

    def read(self, case: Case, round_: int) -> Outcome | None:
        """The outcome, if there is one."""
        path = self.path(case, round_, ".json")
        if not path.exists():
            return None
        try:
            return from_plain(Outcome, json.loads(path.read_text()))
        except (ValueError, TypeError, dacite.DaciteError) as error:
            raise UserError(
                f"{path} is no result of this sweep ({error}); delete it to measure the case again."
            ) from error

    def write(self, outcome: Outcome) -> None:
        """Writes the outcome, whole or not at all."""
        write_whole(self.path(outcome.case, outcome.round, ".json"), json.dumps(to_plain(outcome)) + "\n")

    def read_all(self, cases: Sequence[Case], rounds: int) -> list[Outcome]:
        """The outcomes that there are, in the order of the cases and rounds."""
        outcomes = (self.read(case, round_) for case in cases for round_ in range(rounds))
        return [outcome for outcome in outcomes if outcome is not None]


def write_whole(path: Path, text: str) -> None:
    """Writes under another name first, so that a reader finds the old file or the new one, whole."""
    new = path.with_name(path.name + ".new")
    new.write_text(text)
    new.rename(path)


def _difference(there: Any, here: Any, path: str = "") -> str:
    """The first place where two plain values differ, as `model.embedding_dim is 16 and not 8`."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            if found := _difference(there.get(key), here.get(key), f"{path}.{key}" if path else key):
                return found
        return ""
    return "" if there == here else f"{path} is {_short(there)} and not {_short(here)}"


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) < 60 else f"{text[:60]}..."
