"""A run resumes only on the log that it began with: what the footers of its files tell about the rows."""

import functools
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stem_torchrec.checkpoints.compatibility import check_same_rows, entries_left_out
from stem_torchrec.checkpoints.folder import checkpoint_path, complete_steps, read_progress
from stem_torchrec.config import CheckpointConfig
from stem_torchrec.data.footers import LAYOUT, contents, fingerprint
from stem_torchrec.models.table import all_options
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.trainer import Trainer, train

from distributed import run_ranks
from logs import log_table, reader_of, write_split
from runs import this_process

DATA = Path(__file__).parent / "data"
LAYOUT_OF_FILES = [[20] * 3, [40, 3]]
ROWS = 103


def table_of_all_kinds() -> pa.Table:
    """A log's columns, and columns that it does not read."""
    unread = {
        "time": pa.array(range(ROWS), pa.timestamp("us")),
        "text": pa.array([f"{n}" * 200 for n in range(ROWS)]),
        "zero": pa.array(np.where(np.arange(ROWS) % 2, -0.0, 0.0)),
        "nan": pa.array(np.where(np.arange(ROWS) % 2, np.nan, 1.0)),
        "none": pa.nulls(ROWS, pa.int32()),
        "half": pa.array(np.ones(ROWS, np.float16)),
        "struct": pa.array([{"a": n, "b": 1.0} for n in range(ROWS)]),
        "lists": pa.array([[[n], []] for n in range(ROWS)]),
        "hash": pa.array([2**64 - 1 - n for n in range(ROWS)], pa.uint64()),
    }
    table = log_table(ROWS)
    for name, column in unread.items():
        table = table.append_column(name, column)
    return table


def contents_of(folder: Path, table: pa.Table, files: list[list[int]] = LAYOUT_OF_FILES, **options: Any) -> Any:
    shutil.rmtree(folder, ignore_errors=True)
    write_split(folder, table, files, **options)
    return contents(reader_of(folder, batch_size=6).row_groups)


def with_column(table: pa.Table, name: str, change: Callable[[pa.Array], pa.Array]) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, change(table[name]))


def test_the_contents_do_not_depend_on_the_writer(tmp_path: Path) -> None:
    table = table_of_all_kinds()
    before = contents_of(tmp_path, table)
    assert {"range of 'row'", "nulls of 'like'", "range of 'hash'", "range of 'time' as timestamp[us]"} < set(before)
    assert {"lengths of 'tags'", "range of 'tags'", "range of 'none'", "nulls of 'text'"} < set(before)
    other = {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0", "store_schema": False}
    assert contents_of(tmp_path, table, **other) == before
    types = {"row": pa.int64(), "finish": pa.float64(), "like": pa.int8(), "age": pa.float64(), "user": pa.uint32()}
    types["tags"] = pa.large_list(pa.uint8())
    for name, kind in types.items():
        table = with_column(table, name, functools.partial(pc.cast, target_type=kind))
    table = with_column(table, "zero", lambda zeros: pa.array(np.zeros(ROWS)))
    assert contents_of(tmp_path, table) == before


@pytest.mark.parametrize(
    ("name", "change", "differing"),
    [
        ("row", lambda rows: pc.add(rows, 1), {"range of 'row'"}),
        ("price", lambda prices: pc.multiply(prices, 1.5), {"range of 'price'"}),
        ("like", lambda likes: pc.fill_null(likes, True), {"nulls of 'like'"}),
        ("tags", lambda tags: pa.array([[*(each or ()), 1] for each in tags.to_pylist()]), {"lengths of 'tags'"}),
        ("time", lambda times: pc.add(times, pa.scalar(1, pa.duration("us"))), {"range of 'time' as timestamp[us]"}),
        ("hash", lambda hashes: pc.subtract(hashes, pa.scalar(1, pa.uint64())), {"range of 'hash'"}),
    ],
)
def test_other_rows_in_equal_files_and_row_groups_are_seen(
    tmp_path: Path, name: str, change: Any, differing: set[str]
) -> None:
    table = table_of_all_kinds()
    before, after = contents_of(tmp_path, table), contents_of(tmp_path, with_column(table, name, change))
    assert {entry for entry in before if after[entry] != before[entry]} >= differing
    assert all(f"'{name}'" in entry for entry in before if after[entry] != before[entry])


def test_other_files_and_row_groups_are_seen(tmp_path: Path) -> None:
    table = log_table(ROWS)
    before = contents_of(tmp_path, table)
    assert contents_of(tmp_path, table, [[20, 40], [40, 3]])[LAYOUT] != before[LAYOUT]
    write_split(tmp_path, table, LAYOUT_OF_FILES)
    (tmp_path / "train/part-1.parquet").rename(tmp_path / "train/part-2.parquet")
    assert contents(reader_of(tmp_path, batch_size=6).row_groups)[LAYOUT] != before[LAYOUT]
    # The folder around the split does not count.
    assert contents_of(tmp_path / "moved", table) == before


def test_what_a_writer_leaves_out_is_not_compared(tmp_path: Path) -> None:
    table = log_table(ROWS)
    whole = contents_of(tmp_path, table)
    part = contents_of(tmp_path, table, write_statistics=["row"])
    assert part.items() < whole.items()
    assert {"range of 'row'", "lengths of 'tags'"} < set(part)
    for saved, current in ((whole, part), (part, whole)):
        check_same_rows("there", {"train": saved}, {"train": current})
    other = contents_of(tmp_path, with_column(table, "row", lambda rows: pc.add(rows, 1)), write_statistics=["row"])
    with pytest.raises(
        UserError, match=r"train/ of the log does not hold the rows that there .* \(not the same: range of 'row'\)"
    ):
        check_same_rows("there", {"train": whole}, {"train": other})


def test_one_hash_stands_for_all_contents(tmp_path: Path) -> None:
    hashes = []
    for table in (log_table(ROWS), log_table(ROWS), log_table(ROWS + 1).slice(1)):
        contents_of(tmp_path, table)
        hashes.append(fingerprint(reader_of(tmp_path, batch_size=6).row_groups))
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_the_files_do_not_tell_any_more_is_named_once_and_up_to_three() -> None:
    saved = {"train": dict.fromkeys("abcd", "1"), "valid": dict.fromkeys("be", "1")}
    assert entries_left_out(saved, {"train": {}, "valid": {}}) == "a, b, c and 2 more"
    assert entries_left_out(saved, {"train": {"d": "1", "a": "2"}, "valid": {}}) == "b, c, e"
    assert entries_left_out(saved, saved) == ""
    # What only the log tells now is no loss.
    assert entries_left_out({"train": {}}, saved) == ""


def resume_on_logs(folder: Path) -> tuple[str, list[str], str]:
    """What the stored run prints, its errors on logs of other rows once it has made a checkpoint of its own, and what
    it prints where the log's files have no statistics."""
    run, log, process = folder / "run_format_1", folder / "log", this_process()
    config = load_config(str(run / "config.yaml"))
    config = replace(config, data=replace(config.data, path=str(log)), output_dir=str(run))
    short = replace(config, train=replace(config.train, max_steps=10))
    with redirect_stdout(StringIO()) as out:
        train(short, process)
    (step,) = complete_steps(str(run / "checkpoints"))
    progress = read_progress(checkpoint_path(str(run / "checkpoints"), step), all_options())
    assert set(progress.contents) == {"train", "valid"}
    assert progress.contents["train"][LAYOUT] == progress.row_groups
    errors = []
    for split, name in (("train", "dense_0"), ("valid", "group_user_id")):
        (file,) = (log / split).iterdir()
        whole = file.read_bytes()
        table = pq.read_table(file)
        pq.write_table(with_column(table, name, lambda values: pc.add(values, 1)), file)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        # The first would resume, and the second has ended.
        for start in (lambda: Trainer(config, process), lambda: train(short, process)):
            with pytest.raises(UserError) as error:
                start()
            errors.append(str(error.value))
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        file.write_bytes(whole)
    pq.write_table(pq.read_table(file), file, compression="zstd")
    with redirect_stdout(out):
        Trainer(config, process).close()
    pq.write_table(pq.read_table(file), file, write_statistics=False)
    with redirect_stdout(StringIO()) as later:
        Trainer(config, process).close()
    return out.getvalue(), errors, later.getvalue()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str], str]:
    """The folder, and what `resume_on_logs` returns."""
    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(DATA, folder, dirs_exist_ok=True)
    metrics = folder / "run_format_1/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"finished": False}))
    (result,) = run_ranks(1, resume_on_logs, folder)
    return folder, *result


def test_a_run_of_an_earlier_version_resumes_with_a_note_and_then_refuses_another_log(
    resumed: tuple[Path, str, list[str], str],
) -> None:
    folder, printed, errors, _ = resumed
    assert printed.count("note: an earlier version wrote") == 1
    others = [("train", "dense_0")] * 2 + [("valid", "group_user_id")] * 2
    for error, (split, name) in zip(errors, others, strict=True):
        assert error.startswith(
            f"{split}/ of the log does not hold the rows that {folder}/run_format_1/checkpoints/step-"
        )
        assert f"(not the same: range of '{name}'); give the log as it was, or, for a new day's, another" in error


def test_a_run_resumes_on_files_without_statistics_with_a_note(resumed: tuple[Path, str, list[str], str]) -> None:
    _, before, _, printed = resumed
    note = (
        r"note: the files of the log do not tell ([^,]+, ){2}[^,]+ and \d+ more any more; only the rest is compared\n"
    )
    assert len(re.findall(note, printed)) == 1
    assert printed.count("resuming after step 10 from ") == 1
    assert "any more" not in before


def train_again_on_other_rows(folder: Path) -> list[str]:
    """What a run without checkpoints that has ended prints, and its errors on logs of other rows."""
    log, process = folder / "log", this_process()
    config = load_config(str(folder / "run_format_1/config.yaml"))
    config = replace(
        config,
        data=replace(config.data, path=str(log)),
        train=replace(config.train, max_steps=1),
        checkpoint=CheckpointConfig(minutes=None, steps=None),
        output_dir=str(folder / "run"),
    )
    train(config, process)
    assert not complete_steps(str(folder / "run/checkpoints"))
    with redirect_stdout(StringIO()) as out:
        train(config, process)
    texts = [out.getvalue()]
    for split, name in (("train", "dense_0"), ("valid", "group_user_id")):
        (file,) = (log / split).iterdir()
        whole = file.read_bytes()
        pq.write_table(with_column(pq.read_table(file), name, lambda values: pc.add(values, 1)), file)
        with pytest.raises(UserError) as error:
            train(config, process)
        texts.append(str(error.value))
        file.write_bytes(whole)
    return texts


def test_a_run_that_has_ended_without_checkpoints_is_not_that_of_another_log(tmp_path: Path) -> None:
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    ((printed, *errors),) = run_ranks(1, train_again_on_other_rows, tmp_path)
    assert f"the run in {tmp_path}/run has ended already" in printed
    for error, (split, name) in zip(errors, [("train", "dense_0"), ("valid", "group_user_id")], strict=True):
        assert error.startswith(f"{split}/ of the log does not hold the rows that {tmp_path}/run was made of ")
        assert f"(not the same: range of '{name}')" in error
