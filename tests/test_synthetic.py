"""data/synthetic.py: a log follows its settings, and its best reachable AUC is right."""

import multiprocessing
import os
import re
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data import synthetic
from stem_torchrec.data.pair_auc import pair_auc
from stem_torchrec.data.schema import load_schema
from stem_torchrec.data.synthetic import CHUNK_ROWS, ensure, generate
from stem_torchrec.data.synthetic_world import MISSING, World
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.owner_file import OWNER_FILE

from owners import owned_by_another_process
from small_runs import run_script

ROOT = Path(__file__).parents[1]
SMALL = SyntheticConfig(train_rows=3000, valid_rows=2000, test_rows=1000, users=50, items=40)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def logits(config: SyntheticConfig, rows: int = 20_000) -> np.ndarray:
    return World(config).draw("valid", 0, rows)[1]


def test_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    generate(SMALL, str(tmp_path / "a"))
    generate(SMALL, str(tmp_path / "b"))
    generate(replace(SMALL, seed=1), str(tmp_path / "c"))
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert set(a) == {"schema.json", *(f"{split}/part-00000.parquet" for split in ("train", "valid", "test"))}
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_the_world_of_a_log_is_that_of_earlier_versions() -> None:
    table, drawn, _ = World(SyntheticConfig()).draw("train", 0, 1000)
    assert table["user_id"][:2].to_pylist() == table["group_user_id"][:2].to_pylist() == [354, 83]
    assert table["tags"][1].as_py() == [0, 52, 47]
    # Sums of float32 depend on the order in which a processor adds them.
    np.testing.assert_allclose(drawn[:, :2], [[-0.21806, -1.11130], [-2.05557, -4.56159]], atol=1e-4)


def test_a_chunk_is_a_row_group_and_depends_on_no_other(tmp_path: Path) -> None:
    generate(replace(SMALL, train_rows=CHUNK_ROWS + 10), str(tmp_path / "log"))
    file = pq.ParquetFile(tmp_path / "log/train/part-00000.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [CHUNK_ROWS, 10]
    assert file.read_row_group(1).equals(World(SMALL).draw("train", 1, 10)[0])
    assert not file.read_row_group(1).equals(World(SMALL).draw("train", 0, 10)[0])


def test_splits_are_drawn_apart() -> None:
    world = World(SMALL)
    dense = [world.draw(split, 0, 10)[0]["dense_0"] for split in ("train", "valid", "test")]
    assert dense[0] != dense[1] != dense[2] != dense[0]


def test_conflict_zero_means_equal_preferences() -> None:
    first, second = logits(replace(SMALL, conflict=0.0))
    # Only bias and rounding in float32 are left between them.
    np.testing.assert_allclose(first - first.mean(), second - second.mean(), atol=1e-4)


def test_conflict_one_means_unrelated_preferences() -> None:
    # Dense features, a tenth of the variance, act alike in all tasks. 20 seeds: one world's correlation
    # deviates by about 0.1, the mean of 20 by 0.025.
    related = [np.corrcoef(logits(replace(SMALL, conflict=1.0, seed=seed), 5000))[0, 1] for seed in range(20)]
    assert abs(np.mean(related) - 0.1) < 0.1


def test_tasks_drift_apart_as_conflict_grows() -> None:
    related = [np.corrcoef(logits(replace(SMALL, conflict=conflict)))[0, 1] for conflict in (0.0, 0.3, 0.6, 0.9)]
    assert related == sorted(related, reverse=True)


def test_signal_is_the_deviation_of_the_logits() -> None:
    np.testing.assert_allclose(logits(replace(SMALL, signal=0.7)).std(axis=1), 0.7, rtol=0.03)


def test_positive_rates_are_met(tmp_path: Path) -> None:
    config = replace(SMALL, train_rows=60_000, positive_rate=(0.5, 0.02), missing=(0.0, 0.5))
    split = generate(config, str(tmp_path / "log")).splits["train"]
    for rate, count in zip(config.positive_rate, split.labels.values(), strict=True):
        # Five standard deviations of the share among at least 29,000 labels, twice: the bias has a sample too.
        tolerance = 10 * (rate * (1 - rate) / 29_000) ** 0.5
        assert abs(count.positives / (split.rows - count.missing) - rate) < tolerance


def test_labels_are_missing_at_the_configured_share(tmp_path: Path) -> None:
    schema = generate(replace(SMALL, missing=(0.0, 0.3)), str(tmp_path / "log"))
    table = pq.read_table(tmp_path / "log/train/part-00000.parquet")
    assert table["finish"].null_count == 0
    # Five standard deviations of a share of 3000 rows.
    assert abs(table["like"].null_count / 3000 - 0.3) < 0.042
    for task in ("finish", "like"):
        counts = schema.splits["train"].labels[task]
        assert counts.missing == table[task].null_count
        assert counts.positives == table[task].to_pylist().count(1)


def test_best_auc_is_that_of_the_true_logits(tmp_path: Path) -> None:
    config = replace(SMALL, valid_rows=CHUNK_ROWS + 500, missing=(0.2, 0.0))
    schema = generate(config, str(tmp_path / "log"))
    world = World(config)
    drawn = [world.draw("valid", 0, CHUNK_ROWS), world.draw("valid", 1, 500)]
    for t, task in enumerate(config.tasks):
        scores = np.concatenate([logits[t] for _, logits, _ in drawn])
        labels = np.concatenate([labels[t] for _, _, labels in drawn])
        known = labels != MISSING
        assert schema.facts is not None
        # Both are exact, except for the order of their sums.
        assert schema.facts[f"best_auc/{task}"] == pytest.approx(roc_auc_score(labels[known], scores[known]), abs=1e-12)
        assert 0.7 < schema.facts[f"best_auc_test/{task}"] < 0.95


def test_auc_counts_a_tie_as_one_half() -> None:
    scores, labels = np.array([1, 1, 0, 2, 1], np.float32), np.array([1, 0, 0, 1, 0], np.int8)
    assert pair_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_a_split_of_one_class_has_no_best_auc(tmp_path: Path) -> None:
    schema = generate(replace(SMALL, test_rows=1), str(tmp_path / "log"))
    assert schema.facts is not None
    assert set(schema.facts) == {"best_auc/finish", "best_auc/like"}


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_ids_stay_in_their_tables(tmp_path: Path, exponent: float) -> None:
    config = replace(SMALL, zipf_exponent=exponent, users=1, tags=7, max_tags=3)
    schema = generate(config, str(tmp_path / "log"))
    table = pq.read_table(tmp_path / "log/train/part-00000.parquet")
    for feature in schema.sparse_features:
        column = table[feature.name].combine_chunks()
        ids = (column.flatten() if pa.types.is_list(column.type) else column).to_numpy()
        assert ids.min() >= 0
        assert ids.max() < feature.num_embeddings
    assert set(table["tags"].combine_chunks().value_lengths().to_pylist()) == {0, 1, 2, 3}
    assert table["group_user_id"].to_pylist() == table["user_id"].to_pylist()


@pytest.mark.parametrize("ids", [1, 3, 97])
def test_every_id_occurs_and_popular_ids_lie_apart(ids: int) -> None:
    drawn = World(replace(SMALL, items=ids)).draw("train", 0, 20_000)[0]["item_id"].to_numpy()
    counts = np.bincount(drawn, minlength=ids)
    assert len(counts) == ids
    assert counts.min() > 0
    if ids > 3:
        first, second = np.argsort(counts)[::-1][:2]
        assert abs(first - second) > ids // 5


def test_a_log_without_tags_and_dense_features(tmp_path: Path) -> None:
    schema = generate(replace(SMALL, max_tags=0, dense_features=0), str(tmp_path / "log"))
    table = pq.read_table(tmp_path / "log/train/part-00000.parquet")
    assert schema.dense_features == ()
    assert table["tags"].combine_chunks().flatten().to_pylist() == []
    assert schema == load_schema(str(tmp_path / "log"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"users": 0},
        {"signal": float("nan")},
        {"conflict": 1.5},
        {"tasks": ("a", "a")},
        {"tasks": ("user_id", "like")},
        {"positive_rate": (0.1,)},
        {"missing": (0.1, 1.0)},
    ],
)
def test_bad_values_are_one_sentence(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong)).rstrip("s")) as error:
        generate(replace(SMALL, **wrong), str(tmp_path / "log"))
    assert re.fullmatch(r"[^\n]+\.", str(error.value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", ["shared", "a/b", "a+b", ""])
def test_a_name_that_training_refuses_is_refused_before_anything_is_written(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(ROOT / "datasets/synthetic.py")
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path / "log"), "--tasks", task, "like"])
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().err == (
        f"error: a task cannot be called {task!r}, as parts of the model are called so; in schema.json, give the label "
        "another name and the field column, which names the column of the files. [STEM-LOG]\n"
    )
    assert not list(tmp_path.iterdir())


def test_only_a_log_is_overwritten_and_only_with_overwrite(tmp_path: Path) -> None:
    generate(SMALL, str(tmp_path / "log"))
    with pytest.raises(UserError, match="--overwrite"):
        generate(SMALL, str(tmp_path / "log"))
    generate(replace(SMALL, users=7), str(tmp_path / "log"), overwrite=True)
    assert load_schema(str(tmp_path / "log")).sparse_features[0].num_embeddings == 7
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@pytest.mark.parametrize(
    "change",
    [
        lambda log: (log / "schema.json").unlink(),
        lambda log: (log / "schema.json").write_text("{}"),
        lambda log: (log / "config.yaml").touch(),
        lambda log: (log / "best").mkdir(),
        lambda log: (log / "train/notes.txt").touch(),
        lambda log: (log / "train/day=1").mkdir(),
        lambda log: (log / "vocabulary").touch(),
        lambda log: (log / "valid").rename(log.with_name("v")) and (log / "valid").symlink_to(log.with_name("v")),
    ],
)
def test_nothing_but_a_log_is_overwritten(change: Callable[[Path], object], tmp_path: Path) -> None:
    log = tmp_path / "log"
    generate(SMALL, str(log))
    change(log)
    before = sorted(log.rglob("*"))
    with pytest.raises(UserError, match=f"--out {log} is not replaced, as .*; give another"):
        generate(SMALL, str(log), overwrite=True)
    assert sorted(log.rglob("*")) == before


def test_neither_the_working_folder_nor_home_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    generate(SMALL, str(log))
    monkeypatch.chdir(log / "train")
    for folder in (".", "..", str(tmp_path)):
        with pytest.raises(UserError, match="which is more than a log; give a folder of its own"):
            generate(SMALL, folder, overwrite=True)
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(log))
    with pytest.raises(UserError, match="more than a log"):
        generate(SMALL, str(log), overwrite=True)


def test_a_log_that_another_process_makes_is_left_to_it(tmp_path: Path) -> None:
    unfinished = tmp_path / ".log.new"
    (unfinished / "new/train").mkdir(parents=True)
    owned_by_another_process(unfinished)
    with pytest.raises(UserError, match=f"{unfinished} is in use by process {os.getppid()} "):
        generate(SMALL, str(tmp_path / "log"))
    assert (unfinished / "new/train").is_dir()
    # Of a process that was killed it is removed.
    (unfinished / OWNER_FILE).unlink()
    generate(SMALL, str(tmp_path / "log"))
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "save_schema", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate(SMALL, str(tmp_path / "log"))
    assert not list(tmp_path.iterdir())


def _ensure_at_once(barrier: Any, folder: str) -> None:
    barrier.wait()
    ensure(SMALL, folder)


@pytest.mark.long
def test_two_processes_at_once_generate_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, folder = context.Barrier(2), tmp_path / "runs/log"
    processes = [context.Process(target=_ensure_at_once, args=(barrier, str(folder))) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    # A second generate() would have found the folder taken and raised.
    assert [process.exitcode for process in processes] == [0, 0]
    written = (folder / "schema.json").stat().st_mtime_ns
    ensure(SMALL, str(folder))
    assert (folder / "schema.json").stat().st_mtime_ns == written
    assert {path.name for path in folder.parent.iterdir()} <= {"log", "log.lock"}


def test_the_script_prints_every_split_and_task(tmp_path: Path) -> None:
    line = ["datasets/synthetic.py", "--out", tmp_path / "log"]
    sizes = ["--train-rows", "2000", "--valid-rows", "3000", "--test-rows", "1000"]
    made = run_script(*line, *sizes, "--positive-rate", "0.3", "0.2", "--conflict", "0.8")
    assert re.search(r"valid +3000 +like +[\d.]+% +0.00% +0\.\d{4}\n", made)
    again = run_script(*line, status=2)
    assert again.startswith("error: ")
    assert again.count("\n") == 1
