"""Which files a case may write: new ones where its options say, and those of the run or log that is its own.

Whatever an option names, the log, the list of tables and a run that has ended stay as they are, and so does a run that
another one writes beside or into. A log's splits get no new files either, as these would be read as rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from stem_torchrec.training.run_folder import METRICS_FILE, RUN_FILES

from fuzz.case import Case

OUTPUTS = ("--output-dir", "--out", "--json", "--output", "--predictions", "--checkpoint.folder", "--delta.out", "--to")
"""Options that name what a command writes."""
DEFAULT_OUTPUTS = ("runs", "data", "plan", "home/.cache", "tmp")
"""What commands may write without such an option, and the caches of libraries."""
RUNS = ("run", "paused")
APPLIED_TO = ("bundle", "copy")
GIVEN = ("log", *RUNS, *APPLIED_TO, "raw", "tables.yaml")
"""What an example starts from."""
SPLITS = ("log/train", "log/valid", "log/test")
LOG_MAKERS = ("synthetic", "kuairand", "prepare")


@dataclass(frozen=True)
class Snapshot:
    """The files of a workspace at one time."""

    files: Mapping[str, tuple[int, int, int]]
    """Size, time of change and inode of every file, by its path from the workspace."""
    ended: frozenset[str] = frozenset()
    """The runs that have ended."""

    @classmethod
    def of(cls, folder: Path) -> "Snapshot":
        """What is in a folder now."""
        files = {
            str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns, stat.st_ino)
            for path in folder.rglob("*")
            if not path.is_dir()
            for stat in [path.lstat()]
        }
        return cls(files, frozenset(name for name in RUNS if _has_ended(folder / name)))


def wrong_changes(case: Case, before: Snapshot, after: Snapshot) -> list[str]:
    """The files that are new, gone or other than before, and that the case may not write."""
    return [
        name
        for name in sorted(before.files.keys() | after.files.keys())
        if before.files.get(name) != after.files.get(name) and not _may_write(case, name, before)
    ]


def _may_write(case: Case, name: str, before: Snapshot) -> bool:
    outputs = [place for option in OUTPUTS if (place := case.place(option)) is not None]
    outputs += ["whole", "parts"] if case.command == "resume" else []
    if case.command == "calibrate" and case.place("--out") is None:
        outputs += [f"{case.place('--run') or case.place('--run-dir')}/calibration.json"]
    if not _is_in(name, *DEFAULT_OUTPUTS, *outputs):
        return False
    if not _is_in(name, *GIVEN):
        return True
    overwrites = case.command in LOG_MAKERS and "--overwrite" in case.args and case.place("--out") == "log"
    if _is_in(name, "log") and overwrites:
        return True
    if case.command == "apply_delta" and case.place("--to") in APPLIED_TO and _is_in(name, str(case.place("--to"))):
        return True
    if name not in before.files:
        return not _is_in(name, *SPLITS)
    run, _, inside = name.partition("/")
    own = case.command == "train" and case.place("--output-dir") == run and run in RUNS and run not in before.ended
    return own and inside.partition("/")[0] in RUN_FILES


def _is_in(name: str, *places: str) -> bool:
    return any(name == place or name.startswith(f"{place}/") or place == "." for place in places)


def _has_ended(run: Path) -> bool:
    try:
        return json.loads((run / METRICS_FILE).read_bytes())["finished"] is True
    # An edit may have left anything there.
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False
