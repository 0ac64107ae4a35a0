"""Trackers get what metrics.jsonl gets, and none of them can end a run."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from torchx.runner import get_runner
from torchx.tracker.api import AppRun
from torchx.tracker.backend.fsspec import create

from stem_torchrec.config import LoopConfig
from stem_torchrec.data.synthetic import generate
from stem_torchrec.runtime.errors import DivergedError, Interrupted, UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.tracking.chosen import Trackers, open_trackers
from stem_torchrec.tracking.mlflow_tracker import MLflowTracker
from stem_torchrec.tracking.tracker import Outcome
from stem_torchrec.training.metrics_log import MetricsLog
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_folder import has_ended
from stem_torchrec.training.trainer import Trainer

from distributed import run_ranks
from runs import this_process

ROOT = Path(__file__).parent.parent
FSSPEC = "torchx.tracker.backend.fsspec:create"


class Refusing:
    """A tracker whose server is away."""

    def __init__(self) -> None:
        self.calls = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.calls += 1
        raise ConnectionError("no answer of https://me:secret@host:5000/api")

    def end(self, folder: Path, outcome: Outcome) -> None:
        self.calls += 1


class Noting:
    """A tracker that notes how a run ends, and whether its folder says that it has ended."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, bool]] = []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Needs no numbers."""

    def end(self, folder: Path, outcome: Outcome) -> None:
        self.ends.append((outcome, has_ended(folder)))


def write_run(folder: Path, *, after: int = 0) -> None:
    """Two evaluations of a run, as a Trainer writes them."""
    log = MetricsLog(folder, FolderLock(), after=after)
    log.write(after + 5, {"train/loss/like": 0.5})
    log.write(after + 6, {"valid/like/auc": 0.7, "valid/like/gauc": None})
    (folder / "config.yaml").write_text("recipe: tiny\n")
    log.close()
    log.end_trackers(Outcome.FINISHED)


@pytest.fixture
def torchx_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of TorchX's tracker, which the variables of a job name."""
    folder, settings = tmp_path / "tracking", tmp_path / "tracker.conf"
    folder.mkdir()
    settings.write_text(f"protocol=file\nroot_path={folder}\n")
    monkeypatch.setenv("TORCHX_JOB_ID", "slurm://torchx/7")
    monkeypatch.setenv("TORCHX_TRACKERS", FSSPEC)
    monkeypatch.setenv(f"TORCHX_TRACKER_{FSSPEC.upper()}_CONFIG", str(settings))
    AppRun.run_from_env.cache_clear()
    return folder


def test_torchx_records_run_metrics_and_artifacts(torchx_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_run(run)
    tracker = create(str(tmp_path / "tracker.conf"))
    assert list(tracker.run_ids()) == ["slurm://torchx/7"]
    expected = {"run_folder": str(run), "step": 6, "valid/like/auc": 0.7}
    assert tracker.metadata("slurm://torchx/7") == expected
    paths = {name: artifact.path for name, artifact in tracker.artifacts("slurm://torchx/7").items()}
    assert paths == {name: str(run / name) for name in ("config.yaml", "metrics.jsonl")}


def test_a_job_that_torchx_starts_records_into_the_tracker_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tracking").mkdir()
    page = (ROOT / "docs/launch.md").read_text().replace("/shared/", f"{tmp_path}/")
    [settings] = re.findall(r"```ini\n(.*?)```", page, re.DOTALL)
    (tmp_path / ".torchxconfig").write_text(textwrap.dedent(settings))
    [lines] = re.findall(r"`(protocol=\w+)` and `(root_path=[^`]+)`", page)
    (tmp_path / "tracker.conf").write_text("\n".join(lines))
    monkeypatch.setenv("TORCHXCONFIG", str(tmp_path / ".torchxconfig"))
    with get_runner() as torchx:
        component = f"{ROOT}/launch/components.py:train"
        job = torchx.dryrun_component(component, ["--gpu", "0"], "local_cwd", cfg={"log_dir": str(tmp_path / "jobs")})
    [rank] = job.request.role_params["train"]
    for name, value in rank.env.items():
        if name.startswith("TORCHX_"):
            monkeypatch.setenv(name, value)
    assert rank.env["TORCHX_TRACKERS"] == "fsspec"
    AppRun.run_from_env.cache_clear()
    run = tmp_path / "run"
    run.mkdir()
    write_run(run)
    tracker = create(str(tmp_path / "tracker.conf"))
    assert list(tracker.run_ids()) == [rank.env["TORCHX_JOB_ID"]]
    assert tracker.metadata(rank.env["TORCHX_JOB_ID"]) == {"run_folder": str(run), "step": 6, "valid/like/auc": 0.7}


def test_a_tracker_of_torchx_that_cannot_be_opened_is_named(torchx_folder: Path, tmp_path: Path) -> None:
    torchx_folder.rmdir()
    with pytest.raises(
        UserError, match=r"^the tracker torchx cannot be opened \(AssertionError: .*; mend its settings"
    ):
        MetricsLog(tmp_path, FolderLock())


def test_a_tracker_that_fails_gets_nothing_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusing = Refusing()
    trackers = Trackers({"mlflow": refusing})
    trackers.write(5, {"train/loss/like": 0.5})
    trackers.write(10, {"train/loss/like": 0.4})
    trackers.end(tmp_path, Outcome.FINISHED)
    assert refusing.calls == 1
    sentence = "step 5  the tracker mlflow fails (ConnectionError: no answer of https://***@host:5000/api); it "
    sentence += "gets nothing more of this run\n"
    assert capsys.readouterr().out == sentence


def ends_of_runs(folder: Path) -> list[list[tuple[str, bool]]]:
    """What a tracker notes of a run that is asked to end, when it resumes, of one that fails, and of one that is lost.

    The last one has lost its folder to another process.
    """

    def fail(metrics: object) -> None:
        raise DivergedError("the loss is no number.")

    def lose(metrics: object) -> None:
        trainer._lock._lost.set()

    asked = Event()
    asked.set()
    config = replace(tiny(), train=LoopConfig(max_steps=2))
    config = replace(config, data=replace(config.data, path=str(folder / "log")))
    ends = []
    for name, options in (("a", {"ending": asked}), ("a", {}), ("b", {"watch": fail}), ("c", {"watch": lose})):
        trainer = Trainer(replace(config, output_dir=str(folder / name)), this_process(), **options)
        noting = Noting()
        trainer._file._trackers = Trackers({"noting": noting})
        with suppress(Interrupted, DivergedError):
            trainer.run()
        ends.append(noting.ends)
    return ends


def test_trackers_get_the_outcome_of_a_run_after_its_files(tmp_path: Path) -> None:
    generate(tiny().data.synthetic, str(tmp_path / "log"))
    [ends] = run_ranks(1, ends_of_runs, tmp_path)
    assert ends == [[("KILLED", False)], [("FINISHED", True)], [("FAILED", False)], []]


def test_an_unknown_tracker_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^STEM_TRACKERS names 'wandb', but must name mlflow or torchx\.$"):
        open_trackers({"STEM_TRACKERS": "wandb"}, tmp_path)


def test_a_tracker_whose_package_is_missing_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)  # As if it were not installed.
    with pytest.raises(UserError, match=r'needs mlflow, which is not installed: pip install "stem_torchrec\[mlflow\]"'):
        open_trackers({"STEM_TRACKERS": "mlflow"}, tmp_path)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of MLflow, and runs that write to its files."""
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow-skinny, of the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("STEM_TRACKERS", "mlflow")
    return mlflow.MlflowClient()


def recorded_runs(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("stem_torchrec").experiment_id]))


def test_mlflow_has_one_run_for_a_run_folder_that_resumes(client: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    write_run(run)
    moved = run.rename(tmp_path / 'a "run" elsewhere')
    write_run(moved, after=6)
    [recorded] = recorded_runs(client)
    history = client.get_metric_history(recorded.info.run_id, "valid/like/auc")
    assert [(metric.step, metric.value) for metric in history] == [(6, 0.7), (12, 0.7)]
    assert [each.path for each in client.list_artifacts(recorded.info.run_id)] == ["config.yaml"]
    assert recorded.info.status == "FINISHED"
    lines = [json.loads(line)["step"] for line in (moved / "metrics.jsonl").read_text().splitlines()]
    assert lines == [5, 6, 11, 12]


def test_mlflow_has_two_runs_for_a_run_folder_that_was_made_anew(client: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for _ in range(2):
        run.mkdir()
        write_run(run)
        shutil.rmtree(run)
    assert [each.data.tags["run_folder"] for each in recorded_runs(client)] == [str(run)] * 2


def test_mlflow_shows_which_run_has_failed(client: Any, tmp_path: Path) -> None:
    MLflowTracker(tmp_path).end(tmp_path, Outcome.FAILED)
    [recorded] = recorded_runs(client)
    assert recorded.info.status == "FAILED"
