"""A task in a space of rows: its labels count only where another label is 1, in training and in every metric."""

import json
from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.comparison.options import read_command_line
from stem_torchrec.comparison.parts import parts_of
from stem_torchrec.comparison.scored_rows import ScoredRows
from stem_torchrec.comparison.train_all import train_all
from stem_torchrec.config import DataConfig, SyntheticConfig, TrainConfig
from stem_torchrec.data import synthetic
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.label_kinds import has_mixed_group, label_kinds, may_lack_labels
from stem_torchrec.data.reader import ParquetReader
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.training.run_folder import read_metrics

from logs import SCHEMA, log_table, write_split
from small_runs import run_script


def columns_of(labels: tuple[str, ...] = (), **spaces: str) -> Columns:
    return Columns.select(SCHEMA, labels=labels, spaces=spaces)


def labels_of(folder: Path, columns: Columns, **options: Any) -> list[list[float]]:
    """The labels of 8 rows in the order of the log, None where one is missing."""
    reader = ParquetReader(find_row_groups(str(folder), "train", SCHEMA, columns), columns, batch_size=8, **options)
    [batch] = reader
    return [[None if y != y else y for y in row] for row in batch.labels.tolist()]


def test_labels_outside_of_a_space_are_missing_also_where_the_space_is_no_task(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(8))
    both = labels_of(tmp_path, columns_of(), shuffle_rows=0)
    inside = labels_of(tmp_path, columns_of(like="finish"), shuffle_rows=0)
    assert inside == [[finish, like if finish else None] for finish, like in both]
    alone = labels_of(tmp_path, columns_of(("like",), like="finish"), shuffle_rows=0)
    assert alone == [[like] for _, like in inside]
    # A missing label of the space is not 1.
    finishes = labels_of(tmp_path, columns_of(finish="like"), shuffle_rows=0)
    assert finishes == [[finish if like else None, like] for finish, like in both]


def test_what_asks_which_labels_a_split_has_knows_the_space(tmp_path: Path) -> None:
    write_split(tmp_path, log_table(8))
    facts = []
    for columns in (columns_of(("finish",)), columns_of(("finish",), finish="like")):
        row_groups = find_row_groups(str(tmp_path), "train", SCHEMA, columns)
        facts.append((may_lack_labels(row_groups, columns), label_kinds(row_groups, columns, "finish")))
        assert has_mixed_group(row_groups, columns, "finish") == (columns.spaces == {})
    assert facts == [(False, {0, 1}), (True, {0, 1})]
    # Rows 1, 4 and 7 are liked; of the first four only row 1, which is finished.
    columns = columns_of(("finish",), finish="like")
    write_split(tmp_path, log_table(4))
    assert label_kinds(find_row_groups(str(tmp_path), "train", SCHEMA, columns), columns, "finish") == {1}


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"likes": "finish"},
            "--data.spaces names the task 'likes', but the tasks are finish, like; did you mean 'like'?",
        ),
        ({"like": "finished"}, "--data.spaces has 'finished' for 'like', but must have one of finish; did you mean"),
        ({"like": "like"}, "--data.spaces has 'like' for 'like', but must have one of finish."),
    ],
)
def test_a_space_that_the_log_lacks_is_answered_by_a_sentence(spaces: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        columns_of(**spaces)
    assert str(error.value).startswith(message)


def test_a_comparison_gives_single_task_models_the_same_spaces() -> None:
    config = TrainConfig(data=DataConfig(labels=("finish", "like"), spaces={"like": "finish"}))
    spaces = [part.configure(config).data.spaces for part in parts_of("single_task", ("finish", "like"))]
    assert spaces == [{}, {"like": "finish"}]
    assert parts_of("stem", ("finish", "like"))[0].configure(config).data == config.data


def test_a_model_with_a_space_of_its_own_is_tested_on_the_rows_of_all(tmp_path: Path) -> None:
    sizes = SyntheticConfig(train_rows=600, valid_rows=300, test_rows=300, missing=(0.0, 0.0))
    synthetic.generate(sizes, str(tmp_path / "log"))
    (tmp_path / "v.yaml").write_text("inside: {model.arch: stem, data.spaces: {like: finish}}")
    line = ["--recipe", "tiny", "--train.max-steps", "2", "--model.expert-hidden", "4", "--data.path", tmp_path / "log"]
    line += ["--variants", tmp_path / "v.yaml", "--models", "inside", "--base", "inside", "--seeds", "0"]
    with join_process_group(timeout=60) as process:
        comparison = train_all(read_command_line([*map(str, line), "--out", str(tmp_path / "out")]), process)
    (run,) = comparison.runs
    validated, tested = read_metrics(run.folder).valid, run.test_results()["metrics"]
    assert validated["like"]["rows"] == validated["finish"]["positives"]
    assert tested["like"]["rows"] == 300
    assert ScoredRows(comparison).labeled("like")[0].all()


def test_a_run_trains_and_is_judged_in_the_space_and_evaluate_tells_both(tmp_path: Path) -> None:
    options = ["--recipe", "tiny", "--data.synthetic.train-rows", "2000", "--train.max-steps", "4"]
    text = run_script(
        "stem_torchrec/train.py", *options, "--data.spaces", "like", "finish", "--loss.kinds", "like", "pairs",
        "finish", "jrc", "--loss.positive-weights", "like", "4", "--output-dir", tmp_path / "run", cwd=tmp_path,
    )  # fmt: skip
    rows = {}
    for name, more in {"space": [], "all": ["--all-rows"]}.items():
        file = tmp_path / f"{name}.json"
        text = run_script("stem_torchrec/evaluate.py", "--run", tmp_path / "run", "--json", file, *more, cwd=tmp_path)
        rows[name] = json.loads(file.read_text())["valid"]
        assert ("of like those in which finish is 1" in text) == (name == "space")
    assert rows["space"]["like"]["rows"] == rows["all"]["finish"]["positives"] < rows["all"]["like"]["rows"]
    assert rows["space"]["finish"] == rows["all"]["finish"]
    stored = json.loads((tmp_path / "run/metrics.json").read_text())["valid"]
    assert stored == rows["space"]
