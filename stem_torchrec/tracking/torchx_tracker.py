"""TorchX's trackers, which a job finds by the variables that TorchX gives it."""

from collections.abc import Mapping

from torchx.tracker.api import AppRun

from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tracking.tracker import Outcome

ARTIFACTS = ("config.yaml", "metrics.json", "metrics.jsonl", "best")


class TorchXTracker:
    """Records where a run is, the metrics of its newest evaluation and the paths of its files.

    TorchX keeps one value for a name, so losses of single steps stay in metrics.jsonl.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: AnyPath) -> None:
        self._run = AppRun.run_from_env()
        self._run.add_metadata(run_folder=str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records an evaluation."""
        if any(name.startswith("valid/") for name in values):
            self._run.add_metadata(step=step, **values)

    def end(self, folder: AnyPath, outcome: Outcome) -> None:
        """Records the paths of the files that the run has; copies none."""
        for name in ARTIFACTS:
            if (folder / name).exists():
                self._run.add_artifact(name, str(folder / name))
