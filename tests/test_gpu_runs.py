"""What one GPU can prove of whole runs: metrics, resuming here and on CPU, signals, evaluation, and the profile.

See test_gpu.py for how to run these tests.
"""

import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stem_torchrec.config import CheckpointConfig, ShardingConfig, SyntheticConfig, TrainConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime import process as processes
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import train

from common.processes import module_path
from gpu_runs import (
    FUSED,
    ON_CPU,
    CallOnCPU,
    another_process_on_cpu,
    resume_and_save,
    tensors_of,
    train_until_evaluation,
)
from recovery.train_runs import TrainRun, differences

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("gpu_process")]

RESUMED = [
    *((kernel, "rowwise_adagrad") for kernel in FUSED),
    ("dense", "adam"),
    *(() if ON_CPU else (("fused", "adam"), ("fused_uvm_caching", "partial_rowwise_adam"))),
]
# Sums in another order differ by 1e-7. Runs whose weights start 1e-6 apart end with metrics within 1e-6.
ANOTHER_ORDER = 1e-4
# On CPU an AUC in bf16 is up to 0.0007 from that in fp32, and one of another seed 0.01 to 0.08. tf32 has 3 bits more.
SHARE_OF_PAIRS = {"fp32": ANOTHER_ORDER, "tf32": 0.002, "bf16": 0.005}


@pytest.fixture(scope="module")
def on_cpu() -> Iterator[CallOnCPU]:
    """Calls functions in a process that sees no GPU."""
    with another_process_on_cpu() as call:
        yield call


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the synthetic log of the recipe `tiny`."""
    folder = str(tmp_path_factory.mktemp("log") / "log")
    synthetic.ensure(tiny().data.synthetic, folder)
    return folder


def tiny_run(log: str, folder: Path, **loop: Any) -> TrainConfig:
    """A run of `tiny`: an epoch of 32 steps, with an evaluation after the 20th."""
    recipe = tiny()
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, path=log),
        train=dataclasses.replace(recipe.train, **{"eval_every": 20, "log_every": 4, **loop}),
        output_dir=str(folder),
    )


@pytest.fixture(scope="module")
def whole(log: str, gpu_process: Process, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that is profiled and never stops."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_run(log, folder, profile=True), gpu_process)
    return folder


@pytest.fixture(scope="module")
def whole_on_cpu(log: str, on_cpu: CallOnCPU, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on CPU."""
    folder = tmp_path_factory.mktemp("runs") / "whole_on_cpu"
    on_cpu(train, tiny_run(log, folder))
    return folder


def last_metrics(folder: Path) -> dict[str, float]:
    """Of the validation split, at the end of a run."""
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in line.items() if name.startswith("valid/")}


def assert_ended_alike(run: Path, other: Path) -> None:
    """That two runs ended with the same metrics, but for the order of the sums of their steps."""
    expected = last_metrics(other)
    assert last_metrics(run) == pytest.approx(expected, abs=ANOTHER_ORDER, rel=ANOTHER_ORDER)


@pytest.mark.parametrize("precision", ["fp32", "bf16"] if ON_CPU else ["fp32", "tf32", "bf16"])
def test_every_precision_reaches_the_auc_of_fp32_on_cpu(
    precision: str, log: str, whole: Path, whole_on_cpu: Path, gpu_process: Process, tmp_path: Path
):
    folder = whole
    if precision != "fp32":
        folder = tmp_path / precision
        train(tiny_run(log, folder, precision=precision), gpu_process)
    metrics, expected = last_metrics(folder), last_metrics(whole_on_cpu)
    assert expected["valid/finish/auc"] > 0.6, "nothing was learned"
    for task in ("finish", "like"):
        assert metrics[f"valid/{task}/auc"] == pytest.approx(
            expected[f"valid/{task}/auc"], abs=SHARE_OF_PAIRS[precision]
        )
    if precision == "bf16":
        assert metrics != last_metrics(whole), "nothing ran in bf16"


@pytest.mark.parametrize(("kernel", "optimizer"), RESUMED)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_never_was(
    kernel: str, optimizer: str, gpu_process: Process, log: str, tmp_path: Path
):
    config = tiny_run(log, tmp_path, max_steps=24, eval_every=10)
    whole, interrupted = (
        dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, dropout=0.1),
            sparse=dataclasses.replace(config.sparse, name=optimizer),
            sharding=ShardingConfig(kernel=kernel),
            checkpoint=CheckpointConfig(minutes=None, steps=8),
            output_dir=str(tmp_path / name),
        )
        for name in ("whole", "interrupted")
    )
    train(whole, gpu_process)
    train_until_evaluation(interrupted, gpu_process)
    train(interrupted, gpu_process)
    assert differences(tmp_path / "interrupted", tmp_path / "whole") == []


@pytest.mark.parametrize("deterministic", [True, False])
def test_only_a_deterministic_run_repeats_its_bits_if_several_blocks_add_up_a_row(
    deterministic: bool, gpu_process: Process, tmp_path: Path, restored_determinism: None
):
    # One of the two segments is in at least half of the 4,096 rows of a batch: far more than 1,024 times.
    settings = SyntheticConfig(train_rows=16_384, valid_rows=2048, test_rows=1, user_segments=2)
    synthetic.ensure(settings, str(tmp_path / "log"))
    config = tiny_run(str(tmp_path / "log"), tmp_path, deterministic=deterministic, epochs=2, eval_every=5)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=4096))
    whole, again, interrupted = (
        dataclasses.replace(config, output_dir=str(tmp_path / name)) for name in ("whole", "again", "interrupted")
    )
    for each in (whole, again):
        train(each, gpu_process)
    train_until_evaluation(interrupted, gpu_process)
    train(interrupted, gpu_process)
    for name in ("again", "interrupted"):
        assert_ended_alike(tmp_path / name, tmp_path / "whole")
        if deterministic:
            assert differences(tmp_path / name, tmp_path / "whole") == []


@pytest.fixture
def restored_determinism(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `--train.deterministic` sets for a process is as before at the end of a test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("resumes_on_gpu", [True, False], ids=["cpu_to_gpu", "gpu_to_cpu"])
def test_a_checkpoint_of_the_other_device_is_read_bit_for_bit_and_trained_to_the_same_metrics(
    resumes_on_gpu: bool, log: str, on_cpu: CallOnCPU, gpu_process: Process, whole: Path, tmp_path: Path
):
    def on_gpu(function: Any, *arguments: Any) -> Any:
        return function(*arguments, gpu_process)

    first, then = (on_cpu, on_gpu) if resumes_on_gpu else (on_gpu, on_cpu)
    first(train_until_evaluation, tiny_run(log, tmp_path / "first"))
    checkpoints = str(tmp_path / "first/checkpoints")
    then(resume_and_save, dataclasses.replace(tiny_run(log, tmp_path / "then"), resume=checkpoints))
    saved, expected = (tensors_of(tmp_path / run / "checkpoints/step-000000020") for run in ("then", "first"))
    assert saved.keys() == expected.keys()
    assert [name for name, tensor in saved.items() if not torch.equal(tensor, expected[name])] == []
    assert_ended_alike(tmp_path / "then", whole)


def test_sigterm_ends_a_run_with_status_75_and_a_checkpoint(log: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in module_path().items():
        monkeypatch.setenv(name, value)
    line = ["--recipe", "tiny", "--data.path", log, "--data.num-workers", "1", "--train.log-every", "5"]
    run = TrainRun(tmp_path / "run", [*line, "--train.epochs", "1000"])
    run.wait_for("step 5  ")
    run.send(signal.SIGTERM)
    statuses, output = run.end(60)
    assert statuses == [ExitStatus.RESUME] == [75], output
    assert "Traceback" not in output
    assert "checkpoint written" in output


def test_an_evaluation_gives_the_predictions_of_one_on_cpu(
    whole: Path, on_cpu: CallOnCPU, gpu_process: Process, tmp_path: Path
):
    here, there = (
        EvaluateConfig(run=str(whole), split="test", predictions=str(tmp_path / name)) for name in ("here", "there")
    )
    metrics, expected = evaluate_run(here, gpu_process), on_cpu(evaluate_run, there)
    predictions, expected_predictions = (pq.read_table(each.predictions) for each in (here, there))
    assert predictions.num_rows == 2048
    for name, column in zip(predictions.column_names, predictions.columns, strict=True):
        # fp32 rounds at 6e-8 of a sum, of a few layers.
        atol = 1e-5 if name.startswith("prediction/") else 0
        np.testing.assert_allclose(column.to_numpy(), expected_predictions[name].to_numpy(), rtol=0, atol=atol)
    for task, values in metrics.items():
        assert values.auc == pytest.approx(expected[task].auc, abs=1e-5)


def test_a_profiled_run_trains_to_the_same_bits(log: str, whole: Path, gpu_process: Process, tmp_path: Path):
    train(tiny_run(log, tmp_path / "plain"), gpu_process)
    assert differences(tmp_path / "plain", whole) == []


def test_the_summary_of_a_profile_has_the_times_of_the_gpu(whole: Path):
    lines = [line.split() for line in (whole / "profile/summary.txt").read_text().splitlines()]
    names = next(line for line in lines if line[:1] == ["phase"])
    assert ("GPU" in names) != ON_CPU
    phases = [line for line in lines if " ".join(line[:2]) in ("dense forward", "dense backward", "table backward")]
    assert len(phases) == 3
    # Milliseconds of the host, then of the GPU, and then shares.
    assert ON_CPU or all(float(line[3]) > 0 for line in phases)


def test_more_ranks_than_gpus_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    if ON_CPU:
        monkeypatch.setattr(processes, "trains_on_gpu", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpus = torch.cuda.device_count()
    for name, value in {"RANK": 0, "WORLD_SIZE": gpus + 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": gpus + 1}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError) as error, join_process_group():
        pass
    assert str(error.value).startswith(f"{gpus + 1} ranks on this host would share {gpus} GPUs; start one rank per GPU")
    assert "\n" not in str(error.value)
