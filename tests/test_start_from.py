"""stem-train --start-from: a new run begins with the state of another one, on the log of another day."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.checkpoints.folder import checkpoint_path, complete_steps, read_progress
from stem_torchrec.config import CheckpointConfig, LoopConfig, StartConfig, TrainConfig
from stem_torchrec.config.files import dump_config
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.schema import load_schema
from stem_torchrec.models.ple import PLEOptions
from stem_torchrec.models.table import all_options
from stem_torchrec.preparation.fitting.earlier_log import read_earlier_log
from stem_torchrec.preparation.prepare_log import summary
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.write_report import page_of
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.starting.record import read_start
from stem_torchrec.training.configuration import config_from_command_line, load_config
from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.trainer import Trainer, train

from distributed import run_ranks
from owners import owned_by_another_process
from preparations import prepare, spec_with
from recovery.train_runs import TrainRun, differences
from report_tables import tables
from runs import this_process
from small_runs import run_script, start

DATA = Path(__file__).parent / "data"
COLUMNS = {"user": "int", "day": "int", "click": "int", "late": "int"}
SPEC = spec_with(
    sources={"log": {"files": "log.csv", "columns": COLUMNS}},
    labels={"click": "click", "late": "late"},
    features={"user": {"vocabulary": {"min_count": 1}}},
)


def day_of(number: int, users: int, rows: int) -> str:
    """The raw log of two days: one to train on, and the next to validate."""
    lines = [f"{n % users + 1},{number + (n % 7 == 6)},{n % 3 % 2},{n // 14 % 2}" for n in range(rows)]
    return "\n".join(["user,day,click,late", *lines]) + "\n"


def make_log(folder: Path, number: int, users: int, *, rows: int = 60, **options: Any) -> Path:
    """The log of a day, whose vocabulary grows that of an earlier one."""
    spec = {
        **SPEC,
        "where": f"day >= {number}",
        "split": {"time": {"by": "day", "train_until": number, "valid_until": number + 1}},
    }
    made = prepare(folder, spec, {"log.csv": day_of(number, users, rows)}, out=f"day{number}", report=False, **options)
    return made.with_name(f"day{number}")


def config_on(log: Path, run: Path, **fields: Any) -> TrainConfig:
    """Seven steps with dropout, on the log of a day."""
    tiny = RECIPES["tiny"]()
    return replace(
        tiny,
        data=replace(tiny.data, path=str(log), batch_size=8, eval_batch_size=16),
        model=replace(tiny.model, dropout=0.1),
        sparse=replace(tiny.sparse, name="adagrad"),
        train=LoopConfig(eval_every=3, log_every=2, metric="logloss"),
        checkpoint=CheckpointConfig(minutes=None, steps=100),
        output_dir=str(run),
        **fields,
    )


def printed_by(act: Callable[[], object]) -> str:
    with redirect_stdout(StringIO()) as out:
        act()
    return out.getvalue()


def all_runs(folder: Path) -> dict[str, str]:
    """Makes the runs of this module; returns what they print by name."""
    process, printed = this_process(), {}
    first, second = (folder / "day1", folder / "day2")
    today = config_on(second, folder / "tuesday", start_from=str(folder / "monday"))

    def run(name: str, config: TrainConfig) -> None:
        printed[name] = printed_by(lambda: train(config, process))

    # Its checkpoints have a folder of their own, in which the newest will be damaged.
    elsewhere = CheckpointConfig(minutes=None, steps=3, folder=str(folder / "elsewhere"), keep=3)
    run("monday", replace(config_on(first, folder / "monday"), checkpoint=elsewhere))
    run("dry run", replace(today, output_dir=str(folder / "never"), dry_run=True))
    run("tuesday", today)
    run("from the best", replace(today, output_dir=None, start_from=f"{folder}/monday:best", dry_run=True))
    weights = str(shutil.copytree(folder / "monday" / "best", folder / "weights"))
    run("from weights", config_on(first, folder / "never", start_from=weights, dry_run=True))
    wednesday = config_on(second, folder / "wednesday", start_from=str(folder / "tuesday"))
    with redirect_stdout(StringIO()):
        trainer = Trainer(wednesday, process)
    # It has no evaluation yet, however good those of its source were.
    assert (trainer.state.step, trainer._best.metrics, trainer._best.stopping.best) == (0, {}, None)
    trainer.close()
    # A run that is given up before its first checkpoint starts again from the same source.
    killed = replace(today, output_dir=str(folder / "killed"))
    trainer = Trainer(killed, process)
    trainer.train_step()
    trainer.close()
    run("killed", killed)
    # One that has a checkpoint resumes from it, though its source is gone.
    newest, *_ = complete_steps(str(folder / "elsewhere"))
    moved = folder / "moved"
    shutil.copytree(checkpoint_path(str(folder / "elsewhere"), newest), moved)
    resumed = replace(today, output_dir=str(folder / "resumed"), start_from=str(moved))
    trainer = Trainer(resumed, process)
    trainer.train_step()
    trainer.save()
    trainer.close()
    shutil.rmtree(moved)
    run("would resume", replace(resumed, dry_run=True))
    run("resumed", resumed)
    run("restarted", replace(restarted(folder, today), dry_run=True))
    part = next(Path(checkpoint_path(str(folder / "elsewhere"), newest)).glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-40] + bytes(40))
    run("from the one before", replace(today, output_dir=str(folder / "never"), dry_run=True))
    # A log whose transforms.json is damaged trains; only a run that starts from that one could not compare its ids.
    shutil.copytree(first, folder / "odd")
    (folder / "odd" / "transforms.json").write_text("{")
    run("damaged transforms", config_on(folder / "odd", folder / "never", dry_run=True))
    # A run of an earlier version, which has recorded no ids.
    stored = load_config(str(DATA / "run_format_1" / "config.yaml"))
    earlier = {"start_from": str(DATA / "run_format_1"), "output_dir": str(folder / "never"), "dry_run": True}
    run("earlier version", replace(stored, data=replace(stored.data, path=str(DATA / "log")), **earlier))
    return printed


def restarted(folder: Path, today: TrainConfig) -> TrainConfig:
    """Makes a step of a run without an output folder, whose launcher restarts it when its source is gone."""
    source = shutil.copytree(folder / "weights", folder / "short-lived")
    config = replace(today, output_dir=None, start_from=str(source))
    os.chdir(folder)
    os.environ["TORCHELASTIC_RUN_ID"] = "a launch"
    trainer = Trainer(config, this_process())
    trainer.train_step()
    trainer.save()
    trainer.close()
    shutil.rmtree(source)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("days")
    first = make_log(folder, 1, 5)
    make_log(folder, 2, 8, vocabularies=str(first), grow=True)
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    (result,) = run_ranks(1, all_runs, folder)
    return result


def line_of(printed: str, item: str) -> str:
    return next(line for line in printed.splitlines() if line.startswith(item))


def test_a_day_trains_on_from_the_day_before(folder: Path, printed: dict[str, str]) -> None:
    line = line_of(printed["tuesday"], "tables of user")
    assert "grown" in line
    assert line.split()[-6:] == ["6", "3", "new", "rows", "as", "initialized"]
    config = load_config(str(folder / "tuesday" / "config.yaml"))
    assert config.start_from == str(folder / "monday")
    # Steps, evaluations and the best weights are those of the new run alone.
    steps = [json.loads(line)["step"] for line in (folder / "tuesday" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 2
    assert steps == sorted(steps)
    best = json.loads((folder / "tuesday" / "metrics.json").read_text())
    assert best["finished"]
    assert 0 < best["step"] <= steps[-1]


def test_start_json_has_the_lineage_and_what_was_carried(folder: Path, printed: dict[str, str]) -> None:
    record = read_start(folder / "wednesday")
    assert record is not None
    tuesday, monday = record.parents
    newest = complete_steps(str(folder / "elsewhere"))[0]
    assert (monday.run, monday.step) == (str(folder / "monday"), newest)
    assert monday.weights == checkpoint_path(str(folder / "elsewhere"), newest)
    assert monday.log is not None
    assert monday.log.path == str(folder / "day1")
    assert monday.log.rows == {"train": 52, "valid": 8}
    assert monday.log.split["time"].items() >= {"by": "day", "train_until": 1, "valid_until": 2}.items()
    # Days that a loop cuts by a condition differ in it alone.
    assert (monday.log.where, record.log.where) == ("day >= 1", "day >= 2")
    assert tuesday.run == str(folder / "tuesday")
    assert record.ids["user"].values == 8
    assert record.carried is not None
    assert {line.status for line in record.carried.lines} == {"carried"}
    # A checkpoint that has been moved away from its run still tells it.
    last, *_ = complete_steps(str(folder / "tuesday" / "checkpoints"))
    kept = read_progress(checkpoint_path(str(folder / "tuesday" / "checkpoints"), last), all_options()).start
    assert kept["parents"] == to_dict(record)["parents"][1:]


def test_the_sizes_of_a_log_that_grows_tell_how_many_ids_are_new(folder: Path) -> None:
    sizes = summary(load_schema(str(folder / "day2")), read_earlier_log(str(folder / "day1"), grows=True))
    assert [line.split() for line in sizes.splitlines()[-3::2]] == [
        ["feature", "ids", "new", "ids"],
        ["user", "9", "3"],
    ]


def test_the_best_weights_start_with_fresh_states(printed: dict[str, str]) -> None:
    assert "carried" in line_of(printed["tuesday"], "towers").split()
    assert "fresh" in line_of(printed["from the best"], "towers").split()
    assert "fresh" in line_of(printed["from weights"], "towers").split()
    assert "by their number alone" in line_of(printed["from weights"], "tables of user")


def test_a_run_killed_before_its_first_checkpoint_starts_again_with_the_same_bits(
    folder: Path, printed: dict[str, str]
) -> None:
    assert "starting from" in printed["killed"]
    assert differences(folder / "killed", folder / "tuesday") == []


def test_a_run_that_resumes_does_not_carry_again(folder: Path, printed: dict[str, str]) -> None:
    assert "starting from" not in printed["resumed"]
    assert "resuming after step 1" in printed["resumed"]
    assert differences(folder / "resumed", folder / "tuesday") == []
    record = read_start(folder / "resumed")
    assert record is not None
    assert record.carried is not None
    assert record.parents[0].weights.startswith(str(folder / "moved"))


def test_a_dry_run_shows_the_table_and_writes_nothing(folder: Path, printed: dict[str, str]) -> None:
    assert line_of(printed["dry run"], "tables of user") == line_of(printed["tuesday"], "tables of user")
    assert "dry run: 52 training rows in 7 steps of 1 x 8 an epoch; nothing is written" in printed["dry run"]
    assert not (folder / "never").exists()
    assert "it would resume from" in printed["would resume"]
    assert "starting from" not in printed["would resume"]


def test_a_restart_by_a_launcher_finds_its_own_checkpoint_without_an_output_folder(printed: dict[str, str]) -> None:
    assert re.search(r"it would resume from runs/\d{8}-\d{6}-\w{8}/checkpoints/step-000000001", printed["restarted"])
    assert "starting from" not in printed["restarted"]


def test_checkpoints_elsewhere_are_known_and_a_damaged_one_is_left_out_with_a_note(
    folder: Path, printed: dict[str, str]
) -> None:
    newest, before = (checkpoint_path(f"{folder}/elsewhere", n) for n in complete_steps(f"{folder}/elsewhere")[:2])
    assert f"starting from {newest}\n" in printed["tuesday"]
    assert "trying the checkpoint before" in printed["from the one before"]
    assert f"starting from {before}\n" in printed["from the one before"]


def test_the_page_of_a_run_shows_what_it_started_from(folder: Path, printed: dict[str, str]) -> None:
    record = RunRecord.read(folder / "wednesday", "wednesday")
    text = "\n\n".join(page_of([record]).parts)
    [_, monday] = [row for rows in tables(text)["Lineage"] for row in rows if "started from" in row]
    assert monday["started from"].replace("<wbr>", "") == str(folder / "monday")
    assert (monday["before it"], monday["rows of train"]) == ("2", "52")
    assert monday["split by"].startswith("time: day, ")
    assert monday["where"].replace("&gt;", ">") == "day >= 1"
    assert "what was carried into wednesday" in text


def test_a_run_of_an_earlier_version_and_a_damaged_log_are_noted(printed: dict[str, str]) -> None:
    assert "only their number tells what the ids of " in printed["earlier version"]
    assert "by their number alone" in printed["earlier version"]
    note = line_of(printed["damaged transforms"], "note: ")
    assert note.endswith("prepare the log again. A run that starts from this one cannot compare its ids.")
    assert "dry run: 52 training rows" in printed["damaged transforms"]


def test_the_options_are_those_of_the_source_but_for_its_folders_and_what_it_started_from(
    folder: Path, printed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tuesday = load_config(str(folder / "tuesday" / "config.yaml"))
    assert tuesday.start_from == str(folder / "monday")
    source, new = str(folder / "tuesday"), str(folder / "new")
    line = ["--start-from", source, "--data.path", str(folder / "day2"), "--output-dir", new, "--train.epochs", "3"]
    expected = replace(tuesday, start_from=source, output_dir=new, train=replace(tuesday.train, epochs=3))
    assert config_from_command_line(line) == expected
    assert capsys.readouterr().out == (
        f"the options are those of {source}, but for those given here; --recipe or --config takes others\n"
    )
    newest = checkpoint_path(f"{source}/checkpoints", complete_steps(f"{source}/checkpoints")[0])
    for each in (f"{source}:best", newest, f"{source}/checkpoints"):
        assert config_from_command_line(["--start-from", each]) == replace(tuesday, start_from=each)
        note = f"note: --data.path is not given, so the run trains on the log of {each} again, {folder}/day2"
        assert capsys.readouterr().out.splitlines()[1:] == [note]
    # How it started is its own.
    (folder / "mean").mkdir()
    mean = replace(tuesday, start=StartConfig(new_rows="mean"))
    (folder / "mean" / "config.yaml").write_text(dump_config(mean))
    assert load_config(str(folder / "mean" / "config.yaml")) == mean
    assert config_from_command_line(["--start-from", str(folder / "mean")]).start == StartConfig()


def test_a_recipe_a_file_and_weights_without_options_leave_the_source_its_state_alone(
    folder: Path, printed: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(folder / "tuesday")
    recipe = config_from_command_line(["--recipe", "tiny", "--start-from", source])
    assert recipe == replace(RECIPES["tiny"](), start_from=source)
    file = ["--config", str(folder / "monday" / "config.yaml"), "--start-from", source]
    assert config_from_command_line(file).data.path == str(folder / "day1")
    for bare in ("weights", "nothing"):
        config = config_from_command_line(["--start-from", str(folder / bare)])
        assert config == replace(RECIPES["synthetic"](), start_from=str(folder / bare))
    assert capsys.readouterr().out == ""


def test_a_run_whose_source_is_gone_has_its_own_options_when_it_is_started_again(
    folder: Path, printed: dict[str, str]
) -> None:
    # "moved" has been deleted since.
    line = ["--start-from", str(folder / "moved"), "--output-dir", str(folder / "resumed")]
    config = config_from_command_line(line)
    assert (config.data.path, config.sparse.name, config.start_from) == (str(folder / "day2"), "adagrad", line[1])
    other = config_from_command_line([*line[:2], "--output-dir", str(folder / "tuesday")])
    assert other.recipe == "synthetic"


def refused(config: TrainConfig, folder: Path) -> str:
    """The sentence as the page has it; nothing may be written."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(UserError) as error:
        Trainer(config, this_process())
    assert sorted(path.name for path in folder.iterdir()) == before
    sentence = re.sub(r"process .* ago", "process 4711 on gpu-3 ...", str(error.value))
    return sentence.replace(f"{folder}/", "")


def refusals(folder: Path) -> dict[str, str]:
    """Sentences by what is wrong."""
    tuesday = folder / "tuesday"
    for name in ("live", "without", "damaged"):
        leaves_out = ("checkpoints", "best") if name == "without" else ()
        shutil.copytree(tuesday, folder / name, ignore=shutil.ignore_patterns(*leaves_out))
    owned_by_another_process(folder / "live")
    for part in (folder / "damaged").rglob("*.distcp"):
        part.write_bytes(b"")
    shutil.copytree(folder / "day2", folder / "changed")
    schema = (folder / "changed" / "schema.json").read_text()
    (folder / "changed" / "schema.json").write_text(schema.replace('"num_embeddings": 9', '"num_embeddings": 10'))
    good = config_on(folder / "day2", folder / "new", start_from=str(tuesday))
    cases: dict[str, dict[str, Any]] = {
        "a run that is still trained": {"start_from": str(folder / "live")},
        "a run without a checkpoint": {"start_from": str(folder / "without")},
        "a run without weights": {"start_from": f"{folder}/without:best"},
        "checkpoints that are damaged, all of them": {"start_from": str(folder / "damaged")},
        "a path that does not exist": {"start_from": str(folder / "nothing")},
        "a checkpoint that is gone": {"start_from": f"{tuesday}/checkpoints/step-000000001"},
        "a word other than best": {"start_from": f"{tuesday}:last"},
        "a folder of something else": {"start_from": str(folder / "day2")},
        "the folder of a run's best weights": {"start_from": f"{tuesday}/best"},
        "the best weights of no run": {"start_from": f"{tuesday}/checkpoints:best"},
        "the run folder itself": {"start_from": str(tuesday), "output_dir": str(tuesday)},
        "a checkpoint in the run folder": {"start_from": f"{tuesday}/checkpoints", "output_dir": str(tuesday)},
        "`--resume PATH` as well": {"resume": f"{tuesday}/checkpoints"},
        "another model": {"model": PLEOptions(embedding_dim=8)},
        "a run folder that started from another source": {
            "output_dir": str(tuesday),
            "start_from": str(folder / "wednesday"),
        },
        "a log whose ids do not match its vocabulary": {"data": replace(good.data, path=str(folder / "changed"))},
        "the run folder of another day": {"output_dir": str(folder / "monday"), "start_from": None},
    }
    return {name: refused(replace(good, **fields), folder) for name, fields in cases.items()}


@pytest.fixture(scope="module")
def sentences(folder: Path, printed: dict[str, str]) -> dict[str, str]:
    (result,) = run_ranks(1, refusals, folder)
    return result


def test_what_cannot_be_started_from_is_refused_with_the_sentence_on_the_page(sentences: dict[str, str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "day_two.md").read_text()
    missing = [line for name, sentence in sentences.items() if (line := f"| {name} | {sentence} |") not in page]
    assert "\n".join(missing) == ""


def lived(run: TrainRun, kill_after: float | None) -> bool:
    """Whether a run ended; it is killed after some seconds."""
    if kill_after is not None:
        time.sleep(kill_after)
        for rank, process in enumerate(run.processes):
            if process.poll() is None:
                run.send(signal.SIGKILL, rank)
    statuses, output = run.end()
    assert kill_after is not None or statuses == [0, 0], output
    return statuses == [0, 0]


@pytest.mark.long
def test_ten_days_in_a_row_killed_at_random_moments_end_as_those_that_were_left_alone(tmp_path: Path) -> None:
    dice, log, killed, seconds = random.Random(0), None, 0, 0.0
    before = {"whole": "None", "killed": "None"}
    for day in range(1, 11):
        options: dict[str, Any] = {} if log is None else {"vocabularies": str(log), "grow": True}
        log = make_log(tmp_path, day, 40 + 10 * day, rows=2000, **options)
        for name in before:
            line = ["--data.path", str(log), "--start-from", before[name], "--sparse.name", "adagrad"]
            run = tmp_path / f"{name}{day}"
            kills, begin = dice.randint(1, 2) if name == "killed" else 0, time.monotonic()
            # A run takes about as long as the one that is left alone, which comes first.
            while not lived(start(run, *line, ranks=2), dice.uniform(0.2, 0.9) * seconds if kills > 0 else None):
                kills, killed = kills - 1, killed + 1
            if name == "whole":
                seconds = time.monotonic() - begin
            before[name] = str(run)
        assert differences(tmp_path / f"killed{day}", tmp_path / f"whole{day}") == []
    assert killed >= 5
    final = read_start(tmp_path / "killed10")
    assert final is not None
    assert len(final.parents) == 9
    assert [parent.log.rows["train"] for parent in final.parents if parent.log] == [1715] * 9


def test_the_command_refuses_with_status_2_and_a_dry_run_ends_with_0(folder: Path, printed: dict[str, str]) -> None:
    options = ("--config", folder / "tuesday" / "config.yaml", "--output-dir", folder / "other")
    output = run_script("stem_torchrec/train.py", *options, "--dry-run", cwd=folder)
    assert line_of(output, "tables of user") == line_of(printed["tuesday"], "tables of user")
    output = run_script("stem_torchrec/train.py", *options, "--start-from", folder / "gone", status=2, cwd=folder)
    assert output.endswith(" [STEM-START]\n")
    assert not (folder / "other").exists()
