"""start.json: what a run began with, for the report and for a run that starts from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.runtime.errors import DamagedError, reason_of
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.starting.carried import Carried
from stem_torchrec.starting.id_spaces import IdSpace

START_FILE = "start.json"
START_FORMAT = 1
"""Format version of start.json."""
_SPEC = "spec.yaml"


@dataclass(frozen=True)
class LogRecord:
    """The log of a run."""

    path: str
    rows: dict[str, int]
    """By split."""
    split: dict[str, Any] = field(default_factory=dict)
    """How its spec splits it, as by the days of `time`; {} for a log without a spec."""
    where: str | None = None
    """Which of the raw rows its spec keeps, as those of a day; None without a condition."""


@dataclass(frozen=True)
class Ancestor:
    """A run that another one started from."""

    run: str | None
    """Its folder; None for weights of no run."""
    weights: str
    """The folder of the checkpoint or weights."""
    step: int | None = None
    """Steps that it had made; None for weights of no run."""
    log: LogRecord | None = None
    id: str = ""
    """Of the run; empty for weights of no run, and for a run of an earlier version."""


@dataclass(frozen=True)
class StartRecord:
    """What start.json holds.

    Example::

        read_start(Path("runs/tuesday")).parents[0].run  # "/data/runs/monday"
    """

    run: str
    """The run's folder."""
    checkpoints: str | None
    """The folder of its checkpoints by --checkpoint.folder; None if they are in the run's own."""
    log: LogRecord
    ids: dict[str, IdSpace]
    """What its ids mean, by feature."""
    scales: dict[str, str] = field(default_factory=dict)
    """How its numbers and buckets are made, by feature; see `read_scales`."""
    parents: tuple[Ancestor, ...] = ()
    """The run that it started from, the one before that, and so on."""
    table_steps: int = 0
    """Steps by which the tables' optimizer corrects its moments at step 0."""
    same_rows: dict[str, int] = field(default_factory=dict)
    """By feature, how many of its first rows continue those of the same numbers."""
    carried: Carried | None = None
    """What was carried, grown, fresh and dropped."""
    id: str = ""
    """Drawn at random when the run began, so that it is not taken for an earlier run in the same folder; empty for a
    run of an earlier version."""

    def as_parent(self, weights: str, step: int | None) -> tuple[Ancestor, ...]:
        """The parents of a run that starts from this one."""
        return (Ancestor(self.run, weights, step, self.log, self.id), *self.parents)

    def for_checkpoint(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as plain values."""
        return to_dict(replace(self, carried=None))


def log_record(path: str, rows: Mapping[str, int]) -> LogRecord:
    """The record of a log in the folder `path` with so many rows in each split."""
    spec = path_of(path) / _SPEC
    try:
        content = parse_yaml(spec.read_text()) if spec.exists() else {}
        # YAML reads 2026-11-26 as a date.
        split = json.loads(json.dumps(content.get("split") or {}, default=str))
        where = content.get("where")
        return LogRecord(path, dict(rows), dict(split), None if where is None else str(where))
    # A spec serves people; a run trains without it.
    except (OSError, ValueError, TypeError, AttributeError):
        return LogRecord(path, dict(rows))


def write_start(folder: AnyPath, record: StartRecord) -> None:
    """Writes start.json. Raises UnwritableError."""
    write_json(folder / START_FILE, with_format(to_dict(record), START_FORMAT))


def read_start(folder: AnyPath) -> StartRecord | None:
    """What `write_start` wrote; None for a run of an earlier version, which has no such file.

    Raises DamagedError for a file that is not whole or has been changed, FormatError for a newer format.
    """
    path = folder / START_FILE
    if not path.exists():
        return None
    try:
        return start_of(without_format(parse_json(path.read_text()), START_FORMAT, str(path)))
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path} is damaged ({reason_of(error)}); delete it.") from error


def start_of(values: Any) -> StartRecord:
    """The record that `to_dict` took, as a checkpoint keeps it; raises UserError."""
    return from_dict(StartRecord, values)
