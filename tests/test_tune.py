"""A search: trials are counted over calls and ranks, bad trials end early, and the best setting is kept."""

import contextlib
import gc
import json
import os
import resource
import sys
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
import torch
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from stem_torchrec.config import TrainConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.owner_file import read_owner
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.training.built_run import BuiltRun
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.recipes import tiny
from stem_torchrec.tune import main
from stem_torchrec.tuning.options import read_command_line
from stem_torchrec.tuning.search_space import resolve_log
from stem_torchrec.tuning.study import progress_line, write_results
from stem_torchrec.tuning.trial import make_trial, run_folder
from stem_torchrec.tuning.untrained import check_space, is_refusal

from distributed import forkserver
from owners import owned_by_another_process
from test_launch import environment_with, open_mpi

SPACE_FILE = """\
sparse.learning_rate: {low: 1e-2, high: 1e-1, log: true}
model.num_shared_experts: {low: 1, high: 2}
model.gate_input: [sum, task]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    synthetic.ensure(tiny().data.synthetic, str(folder))
    return folder


def line(log: Path, out: Path, trials: int, *, space: str = SPACE_FILE, steps: str = "8") -> list[str]:
    file = out.with_name("space.yaml")
    file.write_text(space)
    run = ["--recipe", "tiny", "--data.path", str(log), "--train.max-steps", steps]
    return [*run, "--trials", str(trials), "--space", str(file), "--out", str(out)]


def torchrun(rank: int, folder: Path) -> dict[str, str]:
    return {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}


def run_as_rank(environment: dict[str, str], output: Path, *args: str) -> None:
    """Runs the command as one of two ranks; trials form no process group over ranks, so no launcher is needed."""
    os.environ.clear()
    os.environ |= environment
    sys.argv = ["tune.py", *args]
    with output.open("w") as file, contextlib.redirect_stdout(file):
        main()


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tune.py", *args])
    main()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Standard error of a command that exits with status 2."""
    with pytest.raises(SystemExit, match=r"^2$"):
        run(monkeypatch, *args)
    return capsys.readouterr().err


def test_a_search_resumes_and_writes_the_best_setting(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    run(monkeypatch, *line(log, out, 2), "--train.eval-every", "3")
    # The log interval and the timeout change no result.
    run(monkeypatch, *line(log, out, 3), "--train.eval-every", "3", "--train.log-every", "1", "--train.timeout", "60")
    lines = capsys.readouterr().out.splitlines()
    assert [text.split(":")[0] for text in lines] == ["trial 0, 1 of 2", "trial 1, 2 of 2", "trial 2, 3 of 3"]
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert len(rows) == 3
    (best,) = (row for row in rows if row["best"])
    assert best["score"] == max(row["score"] for row in rows)
    assert f"(best {best['score']:.5f} of trial {best['trial']})" in lines[-1]
    config = load_config(str(out / "best.yaml"))
    assert config.sparse.learning_rate == best["sparse.learning_rate"]
    assert config.model.num_shared_experts == best["model.num_shared_experts"]
    assert config.train.eval_every == 3
    assert [folder.name for folder in (out / "trials").iterdir()] == [f"{best['trial']:04d}"]
    # No setting is built to see that the space can be trained.
    monkeypatch.setattr(BuiltRun, "build", None)
    run(monkeypatch, *line(log, out, 3), "--train.eval-every", "3")


@pytest.mark.parametrize("launcher", [torchrun, pytest.param(open_mpi, marks=pytest.mark.long)])
def test_ranks_share_the_trials(log: Path, tmp_path: Path, launcher: Callable[[int, Path], dict[str, str]]) -> None:
    out = tmp_path / "study"
    args = [*line(log, out, 3, steps="2"), "--keep-runs"]
    environments = [environment_with(launcher(i, tmp_path)) for i in (0, 1)]
    ranks = [
        forkserver().Process(target=run_as_rank, args=(environment, tmp_path / f"{i}.txt", *args))
        for i, environment in enumerate(environments)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    # A rank may have begun another trial while the third ended.
    assert 3 <= sum(row["state"] in ("COMPLETE", "PRUNED") for row in rows) <= 4
    assert len(list((out / "trials").iterdir())) == len(rows)
    assert all((tmp_path / f"{i}.txt").read_text().count("trial ") for i in (0, 1))


@pytest.mark.parametrize("launcher", [torchrun, open_mpi])
@pytest.mark.parametrize(("rank", "sentence"), [(0, "is in use by process"), (1, "holds a search with other options")])
def test_only_rank_0_takes_the_folder(
    launcher: Callable[[int, Path], dict[str, str]], rank: int, sentence: str, log: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "study"
    owned_by_another_process(out)
    (out / "study.yaml").write_text("log: {}")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(os, "environ", environment_with(launcher(rank, tmp_path)))
    assert sentence in refusal(monkeypatch, capsys, *line(log, out, 1))
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".lock"} == before


@pytest.mark.long
def test_a_search_chooses_lists_for_longer_than_its_random_trials(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    # The first ten are random.
    run(monkeypatch, *line(log, out, 12, space="model.expert_hidden: [[4], [8, 4]]", steps="1"))
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert {row["model.expert_hidden"] for row in rows} <= {"[4]", "[8, 4]"}
    (best,) = (row for row in rows if row["best"])
    assert list(load_config(str(out / "best.yaml")).model.expert_hidden) == json.loads(best["model.expert_hidden"])
    lines = capsys.readouterr().out.splitlines()
    assert [text.partition(")  ")[2] for text in lines] == [
        f"model.expert_hidden={row['model.expert_hidden']}" for row in rows
    ]


@pytest.mark.long
def test_trials_that_diverge_are_pruned_and_leave_no_connections_open(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    diverging = line(log, out, 6, space="sparse.learning_rate: [1e6]")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A trial needs some 20 files and sockets; one that ended early would leave 8 of them open.
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 45, hard))
    try:
        with pytest.raises(SystemExit, match=r"^2$"):
            run(
                monkeypatch,
                *[*diverging, "--train.eval-every", "8", "--sparse.name", "sgd", "--model.embedding-l2", "1e6"],
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    output, error = capsys.readouterr()
    assert output.splitlines() == [
        f"trial {i}, {i + 1} of 6: pruned  (none finished)  sparse.learning_rate=1e+06" for i in range(6)
    ]
    assert error.startswith(
        f"error: no trial in {out} has finished: all were pruned or refused, for the reasons in trials/*/log.txt"
    )
    assert "the trial ends: the loss at step" in (out / "trials/0005/log.txt").read_text()


def trials_of(args: list[str], *given: dict[str, object], known: Sequence[FrozenTrial] = ()) -> optuna.Study:
    """A study in memory of trials with the given choices, one after the other, after those that are known."""
    config, search = read_command_line(args)
    search, study = resolve_log(search), optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.add_trials(known)
    for choices in given:
        study.enqueue_trial(choices)
        with join_process_group(alone=True) as process:
            print(progress_line(make_trial(study, search, folder=Path(config.out), process=process), study, len(given)))
    if not known:
        write_results(study, config, search)
    return study


FRESH = ["--train.fresh-tables", "--train.epochs", "3", "--data.batch-size", "4096"]
"""Two steps an epoch."""


def test_a_setting_that_a_run_refuses_is_a_trial_that_tells_the_reason_and_the_search_goes_on(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    args = line(log, out, 2, space="sparse.name: [adam, rowwise_adagrad]\nmodel.embedding_dim: {low: 6, high: 8}")
    given = [("adam", 8), ("rowwise_adagrad", 6), ("rowwise_adagrad", 8)]
    trials_of([*args, *FRESH], *({"sparse.name": name, "model.embedding_dim": dim} for name, dim in given))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trial 0, 0 of 3: refused  (none finished)  sparse.name=adam  model.embedding_dim=8"
    assert lines[1].startswith("  --train.fresh-tables does not serve adam, which ")
    assert [text.split(":")[0] for text in lines[2::2]] == ["trial 1, 0 of 3", "trial 2, 1 of 3"]
    assert lines[3] == "  the embedding dimension is 6, but must be a multiple of 4."
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["REFUSED", "REFUSED", "COMPLETE"]
    assert [row["reason"] for row in rows] == [lines[1].strip(), lines[3].strip(), None]
    assert [row["best"] for row in rows] == [False, False, True]
    assert load_config(str(out / "best.yaml")).sparse.name == "rowwise_adagrad"
    assert [folder.name for folder in (out / "trials").iterdir()] == ["0002"]


def test_what_is_not_about_the_setting_ends_the_search(log: Path, tmp_path: Path) -> None:
    args = line(log, tmp_path / "study", 2, space="sparse.name: [adam]")
    config, search = read_command_line(args)
    search, study = resolve_log(search), optuna.create_study(direction="maximize")
    for split in ("train", "valid"):
        (log / split).rename(log / f"{split}_away")
    try:
        with pytest.raises(UserError, match="train"), join_process_group(alone=True) as process:
            make_trial(study, search, folder=Path(config.out), process=process)
    finally:
        for split in ("train", "valid"):
            (log / f"{split}_away").rename(log / split)
    assert [trial.state.name for trial in study.trials] == ["FAIL"]
    full = UserError("cannot be written")
    full.__cause__ = OSError(28, "No space left on device")
    assert [is_refusal(each) for each in (UserError("no"), DamagedError("no"), full)] == [True, False, False]


def test_a_trial_without_enough_memory_for_a_step_is_refused_and_leaves_its_memory_to_the_next(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_step = TrainLoop.train_step
    first: list[weakref.ref[TrainLoop]] = []

    def train_step(loop: TrainLoop) -> StepOutput:
        if not first:
            first.append(weakref.ref(loop))
            torch.empty(2**60)
        assert first[0]() is None
        return make_step(loop)

    monkeypatch.setattr(TrainLoop, "train_step", train_step)
    out, choices = tmp_path / "study", {"model.dropout": 0.1}
    trials_of(line(log, out, 1, space="model.dropout: [0.1]", steps="2"), choices, choices)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "trial 0, 0 of 2: refused  (none finished)  model.dropout=0.1"
    assert lines[1].startswith("  the memory does not suffice ([enforce fail at alloc_cpu.cpp")
    assert lines[1].endswith("); give smaller sizes.")
    rows = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["state"] for row in rows] == ["REFUSED", "COMPLETE"]
    assert [row["reason"] for row in rows] == [lines[1].strip(), None]


def test_a_space_whose_tables_no_memory_holds_is_refused_before_anything_is_written(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(config: TrainConfig, process: Process) -> BuiltRun:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it.")

    monkeypatch.setattr(BuiltRun, "build", build)
    out = tmp_path / "study"
    _, search = read_command_line(line(log, out, 1, space="model.dropout: [0.1, 0.2]"))
    with pytest.raises(
        UserError, match=r"^the memory .* \(CUDA out of memory\. Tried to allocate 2\.00 GiB\); give smaller sizes\.$"
    ):
        check_space(resolve_log(search), out)
    assert not out.exists()


def known_trials(quarters: Sequence[int], choices: dict[str, object]) -> list[FrozenTrial]:
    """As many trials as the pruner waits for, which are better than any other."""
    distributions = {option: CategoricalDistribution([value]) for option, value in choices.items()}
    best = dict.fromkeys(quarters, 1.0)
    trial = optuna.trial.create_trial(params=choices, distributions=distributions, value=1.0, intermediate_values=best)
    return [trial] * 5


def test_a_trial_that_lags_behind_ends_at_its_first_quarter_and_with_new_tables_at_its_second_epoch(
    log: Path, tmp_path: Path
) -> None:
    choices: dict[str, object] = {"model.dropout": 0.1}
    args = [*line(log, tmp_path / "study", 1, space="model.dropout: [0.1]", steps="100"), *FRESH]
    known = known_trials(range(1, 13), choices)
    *_, trial = trials_of(args, choices, known=known).trials
    assert (trial.state.name, list(trial.intermediate_values)) == ("PRUNED", [4, 8])
    often = [*args, "--train.no-fresh-tables", "--data.batch-size", "512"]
    *_, trial = trials_of(often, choices, known=known).trials
    assert (trial.state.name, list(trial.intermediate_values)) == ("PRUNED", [1])


def test_a_pruned_trial_gives_its_folder_back_at_once(log: Path, tmp_path: Path) -> None:
    choices: dict[str, object] = {"model.dropout": 0.1}
    config, search = read_command_line(line(log, tmp_path / "study", 1, space="model.dropout: [0.1]"))
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner())
    study.add_trials(known_trials(range(1, 13), choices))
    study.enqueue_trial(choices)
    gc.disable()
    try:
        with join_process_group(alone=True) as process:
            trial = make_trial(study, resolve_log(search), folder=Path(config.out), process=process)
            assert trial.state.name == "PRUNED"
            assert read_owner(str(run_folder(Path(config.out), trial.number))) is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("space", "args", "sentence"),
    [
        ("model.dropout: [0.1, 0.2]", ["--model.task-weights", "1", "2", "3"], "error: --model.task-weights is "),
        (
            "sparse.name: [adam, lamb]", FRESH,
            "error: none of 2 settings that the space makes can be trained; the first: --train.fresh-tables does not ",
        ),
    ],
)  # fmt: skip
def test_a_space_without_a_setting_that_can_be_trained_is_refused_before_anything_is_written(
    space: str, args: list[str], sentence: str, log: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "study"
    (error,) = refusal(monkeypatch, capsys, *line(log, out, 2, space=space), *args).splitlines()
    assert error.startswith(sentence)
    assert not out.exists()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--train.metric", "acu"], "error: --train.metric is 'acu', but must be auc, "),
        (["--data.features", "uidd"], "error: the log has no sparse feature 'uidd', only "),
        (["--data.path", "nowhere"], "nowhere holds no schema.json"),
        (["--resume", "never"], "error: --checkpoint.folder and --resume do not apply"),
    ],
)
def test_a_mistake_leaves_no_folder(
    args: list[str], sentence: str, log: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "study"
    assert sentence in refusal(monkeypatch, capsys, *line(log, out, 1), *args)
    assert not out.exists()


def test_a_folder_that_cannot_be_written_is_refused(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    error = refusal(monkeypatch, capsys, *line(log, tmp_path / "file", 1))
    assert error.startswith(f"error: --out {tmp_path / 'file'} is not a folder; give a folder.")


def test_trials_evaluate_four_times_an_epoch_and_write_no_checkpoints(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    # An epoch has 31 steps, so that the last evaluation comes after 31 instead of 32.
    run(monkeypatch, *line(log, out, 1, steps="100"), "--data.batch-size", "265", "--checkpoint.steps", "8")
    lines = [json.loads(text) for text in (out / "trials/0000/metrics.jsonl").read_text().splitlines()]
    assert [values["step"] for values in lines if "valid/finish/auc" in values] == [8, 16, 24, 31]
    best = load_config(str(out / "best.yaml"))
    assert best.train.eval_every == 8
    assert not (out / "trials/0000/checkpoints").exists()
    # The run that trains the best setting writes checkpoints as usual.
    assert best.checkpoint.steps == 8


def test_another_search_does_not_go_into_the_folder(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    run(monkeypatch, *line(log, out, 1))
    error = refusal(monkeypatch, capsys, *line(log, out, 1), "--data.batch-size", "32")
    assert "holds a search with other options, another space or another log, where " in error
