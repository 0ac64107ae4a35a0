"""The kinds of errors: each error that a command prints ends with one, and docs/errors.md lists them.

A kind is where a mistake was noticed: some classes of errors have their own, the others that of the room that raises
them. So a sentence may change, and its kind stays; a room that moves takes its kind with it.
"""

from enum import StrEnum


class ErrorKind(StrEnum):
    """What a user can search for: `error: --x is 0, but must be 1. [STEM-OPTION]`."""

    CALIBRATION = "STEM-CALIBRATION"
    CHECKPOINT = "STEM-CHECKPOINT"
    COMPARISON = "STEM-COMPARISON"
    DAMAGED = "STEM-DAMAGED"
    DELTA = "STEM-DELTA"
    DIVERGED = "STEM-DIVERGED"
    EXPRESSION = "STEM-EXPRESSION"
    FOLDER = "STEM-FOLDER"
    FORMAT = "STEM-FORMAT"
    INPUT = "STEM-INPUT"
    INSPECTION = "STEM-INSPECTION"
    INSTALL = "STEM-INSTALL"
    LAUNCH = "STEM-LAUNCH"
    LOG = "STEM-LOG"
    MEMORY = "STEM-MEMORY"
    MODEL = "STEM-MODEL"
    OPTION = "STEM-OPTION"
    PATH = "STEM-PATH"
    PREPARATION = "STEM-PREPARATION"
    RANK = "STEM-RANK"
    RAW = "STEM-RAW"
    REPORT = "STEM-REPORT"
    ROW = "STEM-ROW"
    RUN = "STEM-RUN"
    SERVER = "STEM-SERVER"
    SERVING = "STEM-SERVING"
    SHARDING = "STEM-SHARDING"
    SPEC = "STEM-SPEC"
    START = "STEM-START"
    TRACKING = "STEM-TRACKING"
    TRANSFER = "STEM-TRANSFER"
    TUNING = "STEM-TUNING"
    WRITE = "STEM-WRITE"


_PACKAGE = "stem_torchrec."
OF_ROOMS = {
    "balance": ErrorKind.MODEL,
    "calibration": ErrorKind.CALIBRATION,
    "checkpoints": ErrorKind.CHECKPOINT,
    "comparison": ErrorKind.COMPARISON,
    "config": ErrorKind.OPTION,
    "config.path_fields": ErrorKind.PATH,
    "data": ErrorKind.LOG,
    "deltas": ErrorKind.DELTA,
    "expressions": ErrorKind.EXPRESSION,
    "inspection": ErrorKind.INSPECTION,
    "losses": ErrorKind.OPTION,
    "metrics": ErrorKind.LOG,
    "models": ErrorKind.MODEL,
    "preparation": ErrorKind.PREPARATION,
    "preparation.engines": ErrorKind.RAW,
    "preparation.guessing": ErrorKind.RAW,
    "preparation.raw_files": ErrorKind.RAW,
    "preparation.rows": ErrorKind.RAW,
    "preparation.specs": ErrorKind.SPEC,
    "profiles": ErrorKind.RUN,
    "run_report": ErrorKind.REPORT,
    "runtime.file_systems": ErrorKind.PATH,
    "runtime.folder_lock": ErrorKind.FOLDER,
    "runtime.owner_file": ErrorKind.FOLDER,
    "runtime.path_options": ErrorKind.PATH,
    "runtime.process": ErrorKind.LAUNCH,
    "runtime.report_file": ErrorKind.REPORT,
    "server": ErrorKind.SERVER,
    "serving": ErrorKind.SERVING,
    "sharding": ErrorKind.SHARDING,
    "starting": ErrorKind.START,
    "table_search": ErrorKind.TUNING,
    "tables": ErrorKind.MODEL,
    "tracking": ErrorKind.TRACKING,
    "training": ErrorKind.RUN,
    "transfer": ErrorKind.TRANSFER,
    "tuning": ErrorKind.TUNING,
}
"""By room, or by a part of one."""


def kind_of_module(module: str) -> ErrorKind:
    """The kind of the errors that a module raises; INPUT outside of the rooms, as in scripts of datasets/.

    Example::

        kind_of_module("stem_torchrec.preparation.specs.checks")  # ErrorKind.SPEC
    """
    room = module.removeprefix(_PACKAGE) if module.startswith(_PACKAGE) else ""
    while room and room not in OF_ROOMS:
        room = room.rpartition(".")[0]
    return OF_ROOMS.get(room, ErrorKind.INPUT)
