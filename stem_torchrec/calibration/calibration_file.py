"""calibration.json: the curves of a run's tasks, of which weights they are, and on which rows they were fitted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from stem_torchrec.calibration.curves import Curve, IsotonicCurve, PlattCurve, check_curve
from stem_torchrec.config.formats import FormatError, with_format, without_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.store_path import AnyPath

CALIBRATION_FILE = "calibration.json"
CALIBRATION_FORMAT = 1
"""Format version of calibration.json."""


@dataclass(frozen=True)
class RowsOfLog:
    """Rows of a log: those from `start` up to `stop` of a split, without row `stop`."""

    log: str
    """Its folder."""
    split: str
    start: int
    stop: int
    fingerprint: str
    """Of the split's files, as `data.footers.fingerprint` returns it."""

    def __str__(self) -> str:
        place = f"of {self.log}/{self.split}"
        return f"rows {self.start:,} to {self.stop - 1:,} {place}" if self.start < self.stop else f"no row {place}"


@dataclass(frozen=True)
class BeforeAndAfter:
    """NE and PCOC of a task on the rows that judge it; null where the labels leave one undefined."""

    rows: int
    positives: int
    ne_before: float | None
    ne_after: float | None
    pcoc_before: float | None
    pcoc_after: float | None


@dataclass(frozen=True)
class Calibration:
    """What calibration.json holds.

    Example::

        {"format": 1, "weights": "sha256:9f86...", "fitted_on": {"log": "data/kuairand_pure", "split": "valid", ...},
         "judged_on": {...}, "isotonic": {}, "platt": {"like": {"a": 0.97, "b": -0.31}}, "judged": {"like": {...}}}
    """

    weights: str
    """`checkpoints.checksum.weights_checksum` of the weights that made the predictions."""
    fitted_on: RowsOfLog
    judged_on: RowsOfLog
    isotonic: Mapping[str, IsotonicCurve] = field(default_factory=dict)
    """Curves by task. A task without a curve in either mapping keeps its predictions."""
    platt: Mapping[str, PlattCurve] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    """By task that keeps its predictions, why it has no curve."""
    judged: Mapping[str, BeforeAndAfter] = field(default_factory=dict)
    """By task."""

    @property
    def curves(self) -> dict[str, Curve]:
        """The curve of each task that has one."""
        return {**self.isotonic, **self.platt}


def write_calibration(path: AnyPath, calibration: Calibration) -> None:
    """Writes a calibration.json. Raises UnwritableError."""
    write_json(path, with_format(to_dict(calibration), CALIBRATION_FORMAT))


def read_calibration(path: AnyPath, *, weights: str | None) -> Calibration:
    """What `write_calibration` took.

    Args:
        path: the file.
        weights: the checksum of the weights whose predictions the curves are for; None to apply them to none.

    Raises UserError for a file that is missing, damaged or of other weights, FormatError for a newer format.
    """
    try:
        content = without_format(parse_json(path.read_text()), CALIBRATION_FORMAT, str(path))
        calibration = from_dict(Calibration, content)
        for task, curve in calibration.curves.items():
            try:
                check_curve(curve)
            except ValueError as error:
                raise ValueError(f"the curve of task {task!r}: {error}") from error
    except FormatError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); fit it with stem-calibrate.") from error
    if weights is not None and weights != calibration.weights:
        raise UserError(
            f"{path} was fitted to other weights ({calibration.weights[:15]}) than these ({weights[:15]}); fit it "
            "again with stem-calibrate."
        )
    return calibration
