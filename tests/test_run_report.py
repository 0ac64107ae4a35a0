"""The page of stem-report says what the run folders have, and Chromium shows it; so it does the other two reports."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.run_report.charts import MOST_POINTS, thinned
from stem_torchrec.run_report.operation_sections import memory_by_rank
from stem_torchrec.run_report.reliability import reliability_of
from stem_torchrec.run_report.run_record import RunRecord, Series
from stem_torchrec.run_report.write_report import ReportOptions, names_of, page_of, write_report
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.training.metrics_log import read_metrics_log

from browser import check_page, chromium, opened
from report_tables import Rows, tables
from small_runs import run_script, start

SHORT = ("--train.max-steps", "40", "--data.eval-batch-size", "512")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was asked to end after 25 steps or a little later, resumed, and evaluated with its predictions."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    first = start(folder, *SHORT)
    first.wait_for("step 25  ")
    first.send(signal.SIGTERM)
    statuses, output = first.end()
    assert statuses == [ExitStatus.RESUME], output
    statuses, output = start(folder, *SHORT).end()
    assert statuses == [0], output
    run_script("stem_torchrec/evaluate.py", "--run", folder, "--predictions", folder / "predictions", cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def runs(run: Path) -> list[Path]:
    """That run, and a copy of it without predictions."""
    copy = run.with_name("b")
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("predictions"))
    return [run, copy]


@pytest.fixture(scope="module")
def by_heading(run: Path) -> dict[str, list[Rows]]:
    """The tables of that run's page, by heading."""
    return tables("\n\n".join(page_of([RunRecord.read(run, "a")]).parts))


def test_the_page_of_two_runs_works_in_a_browser(runs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    write_report(ReportOptions(tuple(map(str, runs)), str(file)))
    assert file.stat().st_size < 400_000
    with chromium() as browser:
        # Of each of two tasks the loss, AUC, logloss, PCOC, a curve and a gate, and the two charts of speed.
        check_page(browser, file, charts=14)
        with opened(browser, file) as page:
            lines = page.locator(".run-0 path:visible").count()
            assert lines > 0
            page.get_by_label("a", exact=True).focus()
            page.keyboard.press("Space")
            assert page.locator(".run-0 path:visible").count() == 0
            assert page.locator(".run-1 path:visible").count() > 0


def test_the_page_has_the_numbers_of_the_run(run: Path, by_heading: dict[str, list[Rows]]) -> None:
    record = RunRecord.read(run, "a")
    stored = json.loads((run / "metrics.json").read_text())
    for row in by_heading["Metrics"][0]:
        of_task = stored["valid"][row["task"]]
        shown = {"AUC": "auc", "gAUC": "gauc", "logloss": "logloss", "NE": "ne", "PCOC": "pcoc"}
        assert row | {title: f"{of_task[name]:.4f}" for title, name in shown.items()} == row
        assert row["step"] == str(stored["step"])
    lines = read_metrics_log(run / "metrics.jsonl")
    speeds = [line["train/samples_per_second"] for line in lines if "train/samples_per_second" in line]
    assert by_heading["Speed"][0][0]["samples/s, median"] == f"{np.median(speeds):,.0f}"
    weights, states = memory_by_rank(record)
    plan = json.loads((run / "plan.json").read_text())["tables"].values()
    assert weights == pytest.approx([sum(4 * t["rows"] * t["dim"] for t in plan) / 2**20])
    # The recipe trains its tables with a number for each row.
    assert states == pytest.approx([sum(4 * t["rows"] for t in plan) / 2**20])


def test_an_interrupted_run_shows_its_starts(run: Path, by_heading: dict[str, list[Rows]]) -> None:
    first, second = RunRecord.read(run, "a").starts
    assert first.after == 0
    assert 25 <= first.last_step <= second.after + 7
    assert second.last_step == 40
    assert first.begin < first.end <= second.begin < second.end
    [row, resumed] = by_heading["Starts and faults"][0]
    assert row["resumed after step"] == ""
    assert resumed["resumed after step"] == str(second.after)


def test_a_file_of_events_that_was_cut_off_counts_up_to_there(run: Path, tmp_path: Path) -> None:
    whole = RunRecord.read(run, "a").starts
    folder = tmp_path / "cut"
    shutil.copytree(run, folder)
    for file in (folder / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:-7])
    cut = RunRecord.read(folder, "a").starts
    assert [start.begin for start in cut] == [start.begin for start in whole]


def test_gates_are_logged_with_each_evaluation(run: Path) -> None:
    lines = [line for line in read_metrics_log(run / "metrics.jsonl") if "valid/like/auc" in line]
    assert [line["step"] for line in lines] == [20, 40]
    for line in lines:
        for task in ("finish", "like"):
            weights = [line[f"gate/layers.0/{task}/{group}"] for group in ("finish", "like", "shared")]
            assert sum(weights) == pytest.approx(1, abs=1e-6)  # Of weights in fp32.


def test_a_curve_has_the_shares_of_the_rows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    prediction = generator.beta(1, 30, size=50_000)
    label = np.where(generator.random(50_000) < 0.1, np.nan, generator.random(50_000) < 0.5 * prediction)
    weight = generator.random(50_000)
    for part, rows in enumerate(np.array_split(np.arange(50_000), 3)):
        columns = {
            "label/like": pa.array(label[rows], from_pandas=True),
            "prediction/like": prediction[rows],
            "weight/like": weight[rows].astype(np.float32),
        }
        pq.write_table(pa.table(columns), tmp_path / f"part-{part:05d}.parquet")
    curve = reliability_of(tmp_path, ["like", "other"])["like"]
    known = ~np.isnan(label)
    assert curve.rows == known.sum()
    # A part for each 20 positives.
    assert len(curve.predicted) == (weight * label)[known].sum() // 20
    assert (np.diff(curve.predicted) > 0).all()
    # Predictions are twice what is right. A part has about 40 positives, so a share is within 4 / sqrt(40) of that.
    assert curve.observed == pytest.approx(curve.predicted / 2, rel=0.65)
    assert np.mean(curve.observed / curve.predicted) == pytest.approx(0.5, rel=0.1)


def test_a_long_line_shows_means_of_neighbors() -> None:
    steps, values = thinned(Series(np.arange(900), np.arange(900, dtype=float)))
    assert len(steps) == MOST_POINTS
    assert steps.tolist() == values.tolist() == [3 * i + 1 for i in range(300)]
    known = thinned(Series(np.array([1, 2]), np.array([np.nan, 3.0])))
    assert [each.tolist() for each in known] == [[2], [3]]


def test_names_tell_runs_apart() -> None:
    assert names_of(["/runs/a", "/runs/b"]) == ["a", "b"]
    assert names_of(["/x/seed_0", "s3://b/y/seed_0"]) == ["x/seed_0", "y/seed_0"]


def test_wrong_runs_and_files_are_refused(run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "report.html")
    with pytest.raises(UserError, match=re.escape("RUN or --out is missing")):
        write_report(ReportOptions((), out))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} is no run folder: it has no config.yaml")):
        write_report(ReportOptions((str(tmp_path),), out))
    with pytest.raises(UserError, match=re.escape("is a part of the run")):
        write_report(ReportOptions((str(run),), str(run / "metrics.jsonl")))
    (tmp_path / "notes.html").write_text("<html>mine</html>")
    with pytest.raises(UserError, match=re.escape("notes.html exists, and no report is in it")):
        write_report(ReportOptions((str(run),), str(tmp_path / "notes.html")))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "predictions/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=re.escape("part-00000.parquet holds no predictions that can be read")):
        _ = RunRecord.read(copy, "copy").reliability
    assert not Path(out).exists()


@pytest.mark.long
def test_the_page_of_a_comparison_works_in_a_browser(tmp_path: Path) -> None:
    models = ("--models", "stem,single_task,stem_trains_all,mmoe", "--seeds", "0,1", "--resamples", "20")
    line = (*models, "--item", "item_id", "--train.max-steps", "20", "--out", tmp_path / "out")
    run_script("stem_torchrec/compare.py", "--recipe", "tiny", *line, cwd=tmp_path, seconds=400)
    page = (tmp_path / "out/report.html").read_text()
    with chromium() as browser:
        check_page(browser, tmp_path / "out/report.html", charts=page.count("<figure"))
    assert "<figure" in page


@pytest.mark.long
def test_the_page_of_a_log_works_in_a_browser(tmp_path: Path) -> None:
    labels = [f"label_{i}" for i in range(9)]
    columns = {f"a_feature_with_a_long_name_{i}": [f"v{j % (i + 2)}" for j in range(2000)] for i in range(12)}
    columns |= {name: [str(int(j % (i + 3) < 2)) for j in range(2000)] for i, name in enumerate(labels)}
    table = "\n".join([",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))])
    (tmp_path / "raw.csv").write_text(table + "\n")
    options = [option for name in labels for option in ("--label", name)]
    run_script("stem_torchrec/prepare.py", tmp_path / "raw.csv", "--out", tmp_path / "log", *options, cwd=tmp_path)
    with chromium() as browser:
        check_page(browser, tmp_path / "log/report.html", charts=0)
