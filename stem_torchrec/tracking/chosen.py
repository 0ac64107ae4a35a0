"""Which trackers a run has, and that none of them can end it."""

import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tracking.tracker import Outcome, Tracker

TRACKERS = ("mlflow", "torchx")


class Trackers:
    """The trackers of a run, by their names. One that fails gets nothing more, and the log says so once.

    Args:
        trackers: by name.

    Example::

        trackers = open_trackers({"STEM_TRACKERS": "mlflow"}, Path("runs/a"))
        trackers.write(120, {"train/loss/like": 0.2314})
        trackers.end(Path("runs/a"), Outcome.FINISHED)
    """

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._trackers = dict(trackers)

    def write(self, step: int, values: Mapping[str, float | int | None]) -> None:
        """Hands on the numbers of a step but those that are undefined."""
        numbers = {name: float(value) for name, value in values.items() if value is not None}
        self._each(lambda tracker: tracker.write(step, numbers), f"step {step}  ")

    def end(self, folder: AnyPath, outcome: Outcome) -> None:
        """Ends all of them; a second call does nothing."""
        self._each(lambda tracker: tracker.end(folder, outcome), "")
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None], place: str) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # A library with errors of its own, or its server.
                del self._trackers[name]
                log_rank0(f"{place}the tracker {name} fails ({_reason(error)}); it gets nothing more of this run")


def open_trackers(environ: Mapping[str, str], folder: AnyPath) -> Trackers:
    """The trackers that STEM_TRACKERS names, separated by commas, and torchx where TorchX has configured some.

    Args:
        environ: the variables of this process.
        folder: the run folder.

    Raises UserError as `check_trackers` does, and for a tracker that cannot be opened.
    """
    check_trackers(environ)
    return Trackers({name: _open(name, folder) for name in _names(environ)})


def check_trackers(environ: Mapping[str, str]) -> None:
    """Raises UserError for a tracker of an unknown name or whose package is not installed; opens none.

    A run calls it before it makes its folder.
    """
    for name in _names(environ):
        if name not in TRACKERS:
            raise UserError(f"STEM_TRACKERS names {name!r}, but must name {' or '.join(TRACKERS)}.")
        if find_spec(name) is None:
            package = '"stem_torchrec[mlflow]"' if name == "mlflow" else name
            raise UserError(f"the tracker {name} needs {name}, which is not installed: pip install {package}.")


def _names(environ: Mapping[str, str]) -> list[str]:
    names = [name.strip() for name in environ.get("STEM_TRACKERS", "").split(",") if name.strip()]
    return list(dict.fromkeys([*names, *(["torchx"] if "TORCHX_TRACKERS" in environ else [])]))


def _open(name: str, folder: AnyPath) -> Tracker:
    try:
        # Imported late: a run without trackers needs neither package.
        if name == "torchx":
            from stem_torchrec.tracking.torchx_tracker import TorchXTracker

            return TorchXTracker(folder)
        from stem_torchrec.tracking.mlflow_tracker import MLflowTracker

        return MLflowTracker(folder)
    except Exception as error:  # A library with errors of its own, or its server.
        raise UserError(
            f"the tracker {name} cannot be opened ({_reason(error)}); mend its settings, or unset "
            f"{'TORCHX_TRACKERS' if name == 'torchx' else 'STEM_TRACKERS'}."
        ) from error


def _reason(error: Exception) -> str:
    # The address of a server may hold a password.
    text = re.sub(r"//[^/@\s]+@", "//***@", reason_of(error))
    return f"{type(error).__name__}: {text}"[:300]
