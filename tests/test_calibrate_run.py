"""stem-calibrate: which rows it fits and judges on, what it writes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stem_torchrec.calibration.calibrate_run import CalibrateConfig, calibrate_run
from stem_torchrec.calibration.calibration_file import read_calibration
from stem_torchrec.calibration.rows_of_run import rows_of_run
from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.footers import contents
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.run_evaluation import EvaluationData

from distributed import run_ranks
from runs import this_process
from small_runs import run_script

DATA = Path(__file__).parent / "data"
LOG, RUN = DATA / "log", DATA / "run_format_1"


def copied_log(folder: Path, *, dropped: tuple[str, ...] = ()) -> Path:
    """The stored log, whose test split lacks some columns, or is missing if they are all."""
    shutil.copytree(LOG, folder)
    (file,) = (folder / "test").iterdir()
    pq.write_table(pq.read_table(file).drop_columns(list(dropped)), file)
    return folder


def places(log: Path, judge_on: str | None = None, run: Path = RUN) -> list[str]:
    rows = rows_of_run(str(run), log=str(log), judge_on=judge_on)
    assert rows.tasks == ("finish", "like")
    return [str(each).replace(str(log), "LOG") for each in (rows.fitted, rows.judged)]


def test_the_test_split_judges_or_the_second_half_of_valid_where_it_has_no_labels(tmp_path: Path) -> None:
    assert places(LOG) == ["rows 0 to 95 of LOG/valid", "rows 0 to 31 of LOG/test"]
    halves = ["rows 0 to 47 of LOG/valid", "rows 48 to 95 of LOG/valid"]
    assert places(copied_log(tmp_path / "unlabeled", dropped=("finish", "like"))) == halves
    shutil.rmtree(copied_log(tmp_path / "without") / "test")
    assert places(tmp_path / "without") == halves
    shutil.copytree(LOG / "test", tmp_path / "without" / "day_9")
    assert places(tmp_path / "without", "day_9") == ["rows 0 to 95 of LOG/valid", "rows 0 to 31 of LOG/day_9"]


def test_rows_that_are_fitted_or_trained_on_judge_nothing(tmp_path: Path) -> None:
    log = copied_log(tmp_path / "log", dropped=("finish", "like"))
    shutil.copytree(LOG / "valid", log / "copy")
    for split, sentence in {
        "valid": "LOG/valid has the rows that the curves are fitted to, which tell nothing about later ones; give "
        "a log with others by --data.path, or other rows by --judge-on.",
        "copy": "LOG/copy has the rows that the curves are fitted to, ",
        "train": "LOG/train has the rows that the run was trained on, ",
        "test": "the rows of LOG/test have no labels; give another --judge-on.",
        "later": "LOG/later holds no .parquet file; datasets/README.md shows the layout of a log.",
    }.items():
        assert refusal(log, split).startswith(sentence)
    # Nor a test part that is a copy, and nothing is fitted to the training part.
    schema = json.loads((log / "schema.json").read_text())
    (log / "schema.json").write_text(json.dumps({key: value for key, value in schema.items() if key != "splits"}))
    for split, other, use in (
        ("test", "valid", "the curves are fitted to"),
        ("valid", "train", "the run was trained on"),
    ):
        shutil.rmtree(log / split)
        shutil.copytree(LOG / other, log / split)
        assert refusal(log, None).startswith(f"LOG/{split} has the rows that {use}, ")


def test_the_training_rows_of_the_run_are_refused_in_another_log(tmp_path: Path) -> None:
    log = copied_log(tmp_path / "log")
    change_json(log / "schema.json", lambda schema: schema.pop("splits"))
    shutil.rmtree(log / "valid")
    (log / "train").rename(log / "valid")
    recorded, unended = tmp_path / "recorded", tmp_path / "unended"
    # One has recorded its rows, and of the other only its log tells them.
    for run, path in ((recorded, tmp_path / "gone"), (unended, LOG)):
        shutil.copytree(RUN, run)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("path: /log", f"path: {path}"))
    schema = load_schema(str(LOG))
    rows = contents(find_row_groups(str(LOG), "train", schema, Columns.select(schema)))
    change_json(recorded / "metrics.json", lambda metrics: metrics.update(rows={"train": rows}, format=2))
    for run in (recorded, unended):
        assert refusal(log, None, run).startswith("LOG/valid has the rows that the run was trained on, ")
        # A log of a later day needs no training part.
        later = tmp_path / f"later-of-{run.name}"
        shutil.rmtree(copied_log(later) / "train")
        assert places(later, run=run) == ["rows 0 to 95 of LOG/valid", "rows 0 to 31 of LOG/test"]


def change_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def refusal(log: Path, judge_on: str | None, run: Path = RUN) -> str:
    with pytest.raises(UserError) as error:
        rows_of_run(str(run), log=str(log), judge_on=judge_on)
    return str(error.value).replace(str(log), "LOG")


def test_the_command_writes_the_curves_of_its_weights_and_leaves_no_predictions(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    options = ("--run", run, "--data.path", LOG)
    printed = run_script("stem_torchrec/calibrate.py", *options, "--method", "platt", ranks=2)
    assert (
        f"{run}/calibration.json: platt, fitted on rows 0 to 95 of {LOG}/valid, judged on rows 0 to 31 of {LOG}/test\n"
        in printed
    )
    calibration = read_calibration(run / "calibration.json", weights=weights_checksum(run / "best"))
    assert calibration.curves.keys() == calibration.judged.keys() == {"finish", "like"}
    assert (calibration.judged["like"].rows, calibration.judged["like"].positives) == (32, 4)
    # The table of the evaluation of the test split has the metrics before, from logits in float32.
    last = printed[printed.index("test split of") :]
    of_evaluation = next(line.split() for line in last.splitlines() if line.startswith("like"))
    before = calibration.judged["like"]
    assert [float(each) for each in of_evaluation[4:6]] == pytest.approx(
        [before.ne_before, before.pcoc_before], abs=2e-5
    )
    assert not (run / "calibration.json.rows").exists()


def messages(folder: Path) -> list[str]:
    other, rows, run = folder / "other.json", folder / "new.json.rows", str(RUN)
    other.write_text('{"auc": 0.8}')
    rows.mkdir()
    answers = []
    for config in (
        CalibrateConfig(),
        CalibrateConfig(run=run, out=f"{run}/metrics.json"),
        CalibrateConfig(run=run, out=str(other)),
        CalibrateConfig(run=run, out=str(folder / "new.json")),
        CalibrateConfig(run=str(folder / "nowhere")),
    ):
        with pytest.raises(UserError) as error:
            calibrate_run(
                CalibrateConfig(run=config.run, out=config.out, data=EvaluationData(str(LOG))), this_process()
            )
        answers.append(str(error.value).replace(f"{folder}/", "").replace(run, "RUN"))
    assert other.read_text() == '{"auc": 0.8}'
    return answers


def test_a_mistake_is_one_sentence_before_anything_is_predicted(tmp_path: Path) -> None:
    assert run_ranks(1, messages, tmp_path) == [
        [
            "say which run to calibrate: --run RUN, the folder that training wrote.",
            "--out RUN/metrics.json is a part of the run RUN itself; give another.",
            "other.json exists, and is no calibration to replace; give another --out, or delete it.",
            "new.json.rows exists, where the predictions would go; give another --out, or delete it.",
            "there is no configuration 'nowhere/config.yaml'; a run writes one as config.yaml in its folder.",
        ]
    ]
