"""What refuses labels of another kind: one sentence with the label, its kind, what takes others, and the fix."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from stem_torchrec.calibration.rows_of_run import rows_of_run
from stem_torchrec.config import LossConfig
from stem_torchrec.config.files import CONFIG_FILE, dump_config
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.schema import save_schema
from stem_torchrec.inspection.two_runs import check_two
from stem_torchrec.models.build import build_model
from stem_torchrec.models.table import with_arch
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.table_search.options import TableSearch
from stem_torchrec.table_search.search_tables import search_tables
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.watched_metric import WatchedMetric

from logs import write_split
from mixed_logs import SCHEMA, config_for, mixed_table, small_stem


def judged_by(metric: str, folder: Path) -> WatchedMetric:
    columns = Columns.select(SCHEMA)
    return WatchedMetric.of_split(metric, columns, find_row_groups(str(folder), "train", SCHEMA, columns))


def of_run(folder: Path, **data: Any) -> str:
    """A folder with what a run on the log in `folder` writes first."""
    config = config_for(folder, log="")
    config = replace(config, data=replace(config.data, **data))
    run = folder / "run"
    run.mkdir()
    (run / CONFIG_FILE).write_text(dump_config(config))
    save_schema(SCHEMA, str(run))
    return str(run)


COLUMNS_OF_LOG, ALONE = Columns.select(SCHEMA), Process(0, 1, 1, torch.device("cpu"))
OF_KIND = "the label of 'watch' is of kind number, but"
REFUSED: dict[str, Callable[[Path], object]] = {
    "--loss.kinds has 'pairs' for 'watch', whose label is of kind number, but must have one of mse, huber.": lambda _: (
        build_model(small_stem(), COLUMNS_OF_LOG, LossConfig({"watch": "pairs"}))
    ),
    "--loss.kinds has 'coral' for 'like', whose label is of kind binary, but must have one of bce, focal": lambda _: (
        build_model(small_stem(), COLUMNS_OF_LOG, LossConfig({"like": "coral"}))
    ),
    "--loss.positive-weights names 'stars', but its label is of kind ordinal": lambda _: build_model(
        small_stem(), COLUMNS_OF_LOG, LossConfig(positive_weights={"stars": 2.0})
    ),
    f"{OF_KIND} --model.arch esmm, which multiplies probabilities, takes binary ones alone; choose another "
    "--model.arch, or leave the task out, as in --data.labels like.": lambda _: build_model(
        with_arch(small_stem(), "esmm"), COLUMNS_OF_LOG
    ),
    f"{OF_KIND} stem-tune --what tables takes binary ones alone; leave the task out, as in --data.labels like.": (
        lambda folder: search_tables(TableSearch(out=str(folder / "search")), config_for(folder, log=""), ALONE)
    ),
    f"{OF_KIND} stem-tune --what tables takes binary ones alone; give a --run that was trained with --data.labels li": (
        lambda folder: search_tables(TableSearch(run=of_run(folder), out=str(folder / "search")), tiny(), ALONE)
    ),
    f"{OF_KIND} stem-inspect with two runs takes binary ones alone; give one run, two that were trained with "
    "--data.labels like, or --tables-only.": lambda folder: check_two(*[RunRecord.read(Path(of_run(folder)), "a")] * 2),
    f"{OF_KIND} stem-calibrate takes binary ones alone; give another run than ": lambda folder: rows_of_run(
        of_run(folder, labels=("watch", "stars")), log=None, judge_on=None
    ),
    "--data.spaces has 'watch' for 'like', but must have one of no label": lambda _: Columns.select(
        SCHEMA, spaces={"like": "watch"}
    ),
    "--train.metric is 'logloss', but the validation split has labels of kind number": lambda folder: judged_by(
        "logloss", folder
    ),
    "--train.metric is 'rmse', but the validation split has labels of 0 and 1 for task 'like'": lambda folder: (
        judged_by("rmse", folder)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_labels_of_another_kind_are_refused_by_a_sentence_before_anything_is_written(
    tmp_path: Path, message: str
) -> None:
    write_split(tmp_path, mixed_table(50))
    save_schema(SCHEMA, str(tmp_path))
    with pytest.raises(UserError) as error:
        REFUSED[message](tmp_path)
    assert str(error.value).startswith(message)
    assert judged_by("rmse/watch", tmp_path).judged_tasks == ["watch"]
    assert not (tmp_path / "search").exists()


def test_gauc_of_numbers_and_levels_needs_a_user_with_two_labels(tmp_path: Path) -> None:
    schema, table = replace(SCHEMA, group="user"), mixed_table(50, missing=0.0)
    stars = pa.array([user % 2 for user in table["user"].to_pylist()], pa.int16())
    write_split(tmp_path, table.set_column(table.schema.names.index("stars"), "stars", stars))
    columns = Columns.select(schema)
    row_groups = find_row_groups(str(tmp_path), "train", schema, columns)
    assert WatchedMetric.of_split("gauc/watch", columns, row_groups).judged_tasks == ["watch"]
    with pytest.raises(UserError, match="the validation split has no user with two labels for task 'stars', which le"):
        WatchedMetric.of_split("gauc", columns, row_groups)
