"""No command writes to a folder that another process uses, and no run replaces another one."""

import importlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from stem_torchrec.checkpoints.folder import publish
from stem_torchrec.config import CheckpointConfig, DeltaConfig, TrainConfig, dump_config
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.run_start import _new_folder, check_run_folder, open_run_folder, with_folder_of_launch

from common.output import make_folder
from owners import owned_by_another_process
from runs import progress_after
from small_runs import start

STORED = Path(__file__).parent / "data"
ENDLESS = ("--train.epochs", "5000", "--train.eval-every", "100000")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_in_a_folder_in_use_is_refused_until_it_takes_it_over(tmp_path: Path) -> None:
    """Then the first one ends before it writes again."""
    first = start(tmp_path / "run", *ENDLESS, "--checkpoint.steps", "100000")
    first.wait_for("step 5  ")
    config = (tmp_path / "run/config.yaml").read_bytes()
    for options in ([], ["--seed", "3"]):
        statuses, output = start(tmp_path / "run", *ENDLESS, *options).end(60)
        assert statuses == [2], output
        assert f"{tmp_path / 'run'} is in use by process {first.processes[0].pid} on " in output
        assert "Traceback" not in output
    assert (tmp_path / "run/config.yaml").read_bytes() == config
    line = [*ENDLESS, "--checkpoint.steps", "100000", "--take-over"]
    second = start(tmp_path / "run", *line)
    statuses, output = first.end(60)
    assert statuses == [2], output
    assert f"it was taken over by process {second.processes[0].pid} on " in output
    assert "Traceback" not in output
    second.wait_for("step 5  ")
    second.send(signal.SIGTERM)
    statuses, output = second.end(60)
    assert statuses == [75], output
    assert not list((tmp_path / "run").glob(".owner*"))


def test_two_runs_do_not_share_a_folder_of_checkpoints(tmp_path: Path) -> None:
    log, config = load_schema(str(STORED / "log")), load_config(str(STORED / "run_format_1/config.yaml"))
    owned_by_another_process(tmp_path / "checkpoints")
    shared = replace(
        config, output_dir=str(tmp_path / "run"), checkpoint=CheckpointConfig(folder=str(tmp_path / "checkpoints"))
    )
    with pytest.raises(UserError, match=r"checkpoints is in use .* or give another --checkpoint.folder, or add"):
        check_run_folder(shared, log, FolderLock())
    assert not (tmp_path / "run").exists()
    with FolderLock(take_over=True) as lock:
        assert open_run_folder(shared, log, lock) == tmp_path / "run"
    assert not list(tmp_path.rglob(".owner*"))


def test_two_runs_do_not_share_a_folder_of_deltas(tmp_path: Path) -> None:
    """Also where it is in the run folder of one, and the other one names it."""
    log, config = load_schema(str(STORED / "log")), load_config(str(STORED / "run_format_1/config.yaml"))
    run, other = tmp_path / "run", tmp_path / "other"
    own = replace(config, output_dir=str(run), delta=DeltaConfig(steps=1))
    named = replace(own, output_dir=str(other), delta=DeltaConfig(steps=1, out=str(run / "deltas")))
    for each in (own, named):
        owned_by_another_process(run / "deltas")
        with pytest.raises(UserError, match=r"run/deltas is in use .* or give another --delta.out, or add"):
            check_run_folder(each, log, FolderLock())
        shutil.rmtree(run)
        with FolderLock() as lock:
            folder = open_run_folder(each, log, lock)
            assert {path.parent for path in tmp_path.rglob(".owner.json")} == {folder, run / "deltas"}
        shutil.rmtree(run)
    # Its own folder may be named as well.
    both = replace(own, delta=named.delta)
    with FolderLock() as lock:
        assert open_run_folder(both, log, lock) == run


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    log = load_schema(str(STORED / "log"))
    assert len({_new_folder() for _ in range(20)}) == 20
    # The ranks that a launcher restarts get the folder of before, if it has a run of the same options.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    config = load_config(str(STORED / "run_format_1/config.yaml"))
    assert with_folder_of_launch(config, log) == config
    folder = _new_folder()
    (folder / "config.yaml").write_text(dump_config(config))
    assert with_folder_of_launch(config, log).output_dir == str(folder)
    assert with_folder_of_launch(replace(config, seed=4), log).output_dir is None


@pytest.mark.parametrize("written", ["config.yaml", "best", "metrics.json", "tensorboard", "damaged checkpoints"])
def test_an_interrupted_run_is_not_replaced_by_one_of_other_options(written: str, tmp_path: Path) -> None:
    """Whatever it has written besides its configuration."""
    run, log = tmp_path / "run", load_schema(str(STORED / "log"))
    stored = load_config(str(STORED / "run_format_1/config.yaml"))
    run.mkdir()
    shutil.copy(STORED / "run_format_1/config.yaml", run)
    save_schema(log, str(run))
    if written == "metrics.json":
        shutil.copy(STORED / "run_format_1/metrics.json", run)
    elif written == "damaged checkpoints":
        (run / "checkpoints/step-000000004").mkdir(parents=True)
        (run / "checkpoints/step-000000004/progress.json").write_text("{")
    elif written != "config.yaml":
        (run / written).mkdir()
    before = files_of(run)
    same = replace(stored, output_dir=str(run))
    check_run_folder(same, log, FolderLock())
    for other, field in (
        (replace(same, seed=9), "seed was 3 and is 9"),
        (replace(same, model=replace(same.model, embedding_dim=16)), "model.embedding_dim was 4 and is 16"),
    ):
        for refused in (check_run_folder, open_run_folder):
            with FolderLock() as lock, pytest.raises(UserError, match=f"{field}.*; give another --output-dir, or the"):
                refused(other, log, lock)
    with pytest.raises(UserError, match="run holds a run already; give another --output-dir, or --resume auto"):
        check_run_folder(replace(same, resume="never"), log, FolderLock())
    assert files_of(run) == before


def test_without_a_checkpoint_only_the_same_options_start_again(tmp_path: Path) -> None:
    run, log = tmp_path / "run", load_schema(str(STORED / "log"))
    stored = load_config(str(STORED / "run_format_1/config.yaml"))
    (run / "best").mkdir(parents=True)
    shutil.copy(STORED / "run_format_1/config.yaml", run)
    faster = replace(stored, output_dir=str(run), sparse=replace(stored.sparse, learning_rate=0.5))
    with pytest.raises(UserError, match=r"would replace: sparse.learning_rate was 0\.\d+ and is 0\.5; give another"):
        check_run_folder(faster, log, FolderLock())
    (run / "checkpoints/step-000000010").mkdir(parents=True)
    publish(str(run / "checkpoints/step-000000010"), progress_after(10))
    check_run_folder(faster, log, FolderLock())


def test_a_folder_with_files_of_a_run_but_no_configuration_is_not_used(tmp_path: Path) -> None:
    save_schema(load_schema(str(STORED / "log")), str(tmp_path))
    with pytest.raises(UserError, match=r"holds schema.json but no config.yaml, so it is no run to resume; give an"):
        check_run_folder(TrainConfig(output_dir=str(tmp_path)), load_schema(str(STORED / "log")), FolderLock())


TINY = ["--recipe", "tiny", "--data.path", str(STORED / "log")]


@pytest.mark.parametrize(
    ("command", "options", "suffix"),
    [
        ("compare", [*TINY, "--models", "single_task", "--out"], ""),
        ("tune", [*TINY, "--out"], ""),
        ("evaluate", ["--run", str(STORED / "run_format_1"), "--data.path", str(STORED / "log"), "--predictions"], ""),
        ("convert", ["--run", str(STORED / "run_format_1"), "--out"], ".new"),
    ],
)
def test_every_command_refuses_a_folder_in_use(
    command: str,
    options: list[str],
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / f"out{suffix}"
    owned_by_another_process(out)
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *options, str(tmp_path / "out")])
    main: Callable[[], None] = importlib.import_module(f"stem_torchrec.{command}").main
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    assert f"error: {out} is in use by process {os.getppid()} on " in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [".owner.json"]


def test_a_benchmark_refuses_a_folder_in_use(tmp_path: Path) -> None:
    owned_by_another_process(tmp_path)
    with pytest.raises(UserError, match=r"is in use by .* or give another --out, or delete .owner.json in it to take"):
        make_folder(str(tmp_path))
