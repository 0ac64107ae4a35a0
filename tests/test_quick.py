"""A run that is killed, resumed, converted and taken on: half of a walk through all packages (make quick).

The walk fails if one of them is broken. Other tests state the same facts and more, each of one package.
"""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec import add_tasks, load_config, load_schema, warm_start
from stem_torchrec.data.files import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.exit_status import ExitStatus

from recovery.train_runs import differences
from small_runs import run_script, start

pytestmark = pytest.mark.quick
ONCE = ["--sharding.input-dist", "once"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs, which share a synthetic log in it."""
    return tmp_path_factory.mktemp("quick")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """An uninterrupted, profiled run of two ranks."""
    statuses, output = start(folder / "whole", *ONCE, "--train.profile", ranks=2).end()
    assert statuses == [0, 0], output
    return folder / "whole"


def test_a_killed_and_terminated_run_ends_with_the_bits_of_an_uninterrupted_and_profiled_one(
    folder: Path, whole: Path
) -> None:
    run = folder / "killed"
    part = start(run, *ONCE, ranks=2)
    part.wait_for("step 25  ")
    part.send(signal.SIGKILL)
    part.end()
    assert list((run / "checkpoints").glob("step-*"))
    part = start(run, *ONCE, ranks=2)
    part.wait_for("step 40  ")
    part.send(signal.SIGTERM, 1)
    statuses, output = part.end(60)
    assert statuses == [ExitStatus.RESUME] * 2, output
    assert "resuming after step" in output
    assert "checkpoint written" in output
    statuses, output = start(run, *ONCE, ranks=2).end()
    assert statuses == [0, 0], output
    assert "resuming after step" in output
    assert differences(run, whole) == []
    assert "dense backward" in (whole / "profile" / "summary.txt").read_text()


def test_a_run_converts_to_the_packed_layout_and_predicts_the_same(whole: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    run_script("stem_torchrec/convert.py", "--run", whole, "--layout", "packed", "--out", packed)
    predictions = []
    for run in (whole, packed):
        files = ["--json", tmp_path / f"{run.name}.json", "--predictions", tmp_path / run.name / "predictions"]
        run_script("stem_torchrec/evaluate.py", "--run", run, *files, cwd=whole.parent)
        predictions.append(pq.read_table(tmp_path / run.name / "predictions"))
        evaluated = json.loads((tmp_path / f"{run.name}.json").read_text())["valid"]
        for task, metrics in json.loads((whole / "metrics.json").read_text())["valid"].items():
            # One rank sums pooled embeddings in another order than two.
            assert evaluated[task] == pytest.approx(metrics, rel=1e-5)
    assert predictions[0].equals(predictions[1])


def test_a_trained_model_takes_a_task_and_a_table(whole: Path) -> None:
    columns, config = Columns.select(load_schema(str(whole))), load_config(str(whole / "config.yaml"))
    model = build_model(config.model, replace(columns, labels=(*columns.labels, "share")), table_device="cpu")
    assert add_tasks(model, str(whole), tables_from="shared") == ("share",)
    feature = next(iter(columns.sparse))
    tables = {
        name.split(".")[-2]: weight for name, weight in model.named_parameters() if name.endswith(f"/{feature}.weight")
    }
    assert torch.equal(tables[f"share/{feature}"], tables[f"shared/{feature}"])
    warm_start(model, str(whole / "best"), {f"share/{feature}": f"like/{feature}"})
    assert torch.equal(tables[f"share/{feature}"], tables[f"like/{feature}"])
    assert not torch.equal(tables[f"share/{feature}"], tables[f"shared/{feature}"])
