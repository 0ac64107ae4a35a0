"""MLflow: a run folder is a run of MLflow, also after it has resumed."""

import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.tracking.tracker import Outcome

ARTIFACTS = ("config.yaml", "schema.json", "plan.json", "metrics.json")
"""Small files, which MLflow gets copies of; weights stay in the run folder."""
ID_FILE = "mlflow_id"
"""In a run folder; a run of MLflow has its text as the tag stem_run."""
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Seconds for an answer of the server, and how often it is asked again; MLflow's own are 120 and 7."""


class MLflowTracker:
    """Records all numbers by step, and the configuration and the best metrics as artifacts.

    The server is that of MLFLOW_TRACKING_URI, the experiment that of MLFLOW_EXPERIMENT_NAME, by default stem_torchrec.

    Args:
        folder: the run folder; the run of MLflow that its mlflow_id names goes on, wherever the folder is now.
    """

    def __init__(self, folder: AnyPath) -> None:
        # All ranks wait while rank 0 waits for the server; in many minutes they would take it for lost.
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        # Imported late: the package is an extra.
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._client, self._metric = MlflowClient(), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "stem_torchrec")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        file = folder / ID_FILE
        if not file.exists():
            write_text(file, uuid.uuid4().hex)
        own = file.read_text()
        runs = self._client.search_runs([number], filter_string=f'tags.stem_run = "{own}"')
        tags = {"stem_run": own, "run_folder": str(folder.resolve() if isinstance(folder, Path) else folder)}
        run = runs[0] if runs else self._client.create_run(number, run_name=folder.name, tags=tags)
        self._id = run.info.run_id
        self._client.update_run(self._id, "RUNNING")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Records the numbers of a step."""
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in values.items()])

    def end(self, folder: AnyPath, outcome: Outcome) -> None:
        """Copies the small files of a local run folder, and gives the run of MLflow its status."""
        for name in ARTIFACTS:
            if isinstance(folder, Path) and (folder / name).exists():
                self._client.log_artifact(self._id, str(folder / name))
        self._client.set_terminated(self._id, str(outcome))
