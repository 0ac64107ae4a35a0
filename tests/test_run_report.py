"""The page of stem-report says what the run folders have, and Chromium shows it; so it does the other two reports."""

import json
import re
import shutil
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from stem_torchrec.calibration.calibration_file import BeforeAndAfter, Calibration, RowsOfLog, write_calibration
from stem_torchrec.calibration.curves import PlattCurve
from stem_torchrec.checkpoints.weights import saved_tensors
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.footers import LAYOUT
from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.run_report.charts import MOST_POINTS, calibration, thinned
from stem_torchrec.run_report.operation_sections import faults
from stem_torchrec.run_report.plan_section import memory_by_rank, plans
from stem_torchrec.run_report.projector import values_file
from stem_torchrec.run_report.reliability import Reliability, reliability_of
from stem_torchrec.run_report.run_record import RunRecord, Series
from stem_torchrec.run_report.vocabularies import Values, read_values, vocabularies_of_run
from stem_torchrec.run_report.write_report import ReportOptions, names_of, page_of, write_report
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.report_file import Report
from stem_torchrec.sharding.plan_file import StoredTable
from stem_torchrec.training.metrics_log import read_metrics_log

from browser import check_page, chromium, opened
from report_tables import Rows, tables
from small_runs import run_script, start

TASKS = ("finish", "like")
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
            page.locator("summary").last.focus()
            page.keyboard.press("Enter")
            assert page.locator("details pre").last.is_visible()


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


def test_the_page_has_the_gates_of_the_best_evaluation(run: Path, by_heading: dict[str, list[Rows]]) -> None:
    best = json.loads((run / "metrics.json").read_text())["step"]
    lines = read_metrics_log(run / "metrics.jsonl")
    [line] = [line for line in lines if line["step"] == best and "valid/like/auc" in line]
    shown = {row["stream"]: row for row in by_heading["Gates"][0]}
    assert shown.keys() == set(TASKS)
    for task in TASKS:
        for group in (*TASKS, "shared"):
            assert shown[task][group] == f"{line[f'gate/layers.0/{task}/{group}']:.3f}"


def test_the_page_tells_what_a_run_was_made_of(run: Path, by_heading: dict[str, list[Rows]]) -> None:
    stored = json.loads((run / "metrics.json").read_text())["rows"]
    [row] = by_heading["Lineage"][0]
    expected = {"run": "a", "folder": str(run), "log": "synthetic", "recipe": "tiny", "seed": "0", "resume": "auto"}
    assert {name: row[name].replace("<wbr>", "") for name in expected} == expected
    for split, count in (("train", "8,300"), ("valid", "2,048")):
        assert row[f"rows of {split}"] == f"{count} ({stored[split][LAYOUT][:8]})"


def tables_of(section: Callable[[Report, Sequence[RunRecord]], None], record: RunRecord) -> dict[str, list[Rows]]:
    """The tables of one section of a run's page, by heading."""
    report = Report("one section")
    section(report, [record])
    return tables("\n\n".join(report.parts))


def test_the_page_counts_what_was_skipped_and_could_not_be_written(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("best", "predictions", "tensorboard"))
    counts = {
        "skipped_batches": 3, "skipped_rows": 1234,
        "failed_checkpoints": 2, "failed_best_weights": 1, "failed_deltas": 4,
    }  # fmt: skip
    last = read_metrics_log(folder / "metrics.jsonl")[-1]
    # The names are those that a run without faults logs as 0; it logs bad rows only where it skips them.
    assert {name for name in last if name.startswith("count/failed") or name == "count/skipped_batches"} == {
        f"count/{name}" for name in counts if name != "skipped_rows"
    }
    line = last | {f"count/{name}": count for name, count in counts.items()}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    (folder / "nonfinite").mkdir()
    for name in ("a", "b"):
        (folder / f"nonfinite/{name}.parquet").touch()
    [row] = tables_of(faults, RunRecord.read(folder, "a"))["Starts and faults"][-1]
    assert row["batches skipped, loss not finite"] == "3"
    assert row["bad rows skipped in the epoch"] == "1,234"
    assert row["checkpoints not written"] == "2"
    assert row["best weights not written"] == "1"
    assert row["deltas not written"] == "4"
    assert row["batches kept in nonfinite/"] == "2"


def test_the_page_has_the_plan_and_the_memory_of_each_rank(run: Path) -> None:
    record = RunRecord.read(run, "a")
    plan = {
        "a": StoredTable(2**17, 4, "table_wise", "fused", (1,)),
        "b": StoredTable(2**18, 8, "row_wise", "fused"),
        "c": StoredTable(2**16, 4, "data_parallel", "dense"),
        "d": StoredTable(2**17, 8, "column_wise", "fused", (0, 0)),
    }
    peaks = {"memory/host_mib/rank_0": 700.0, "memory/host_mib/rank_1": 900.0}
    record = replace(record, plan=plan, world_size=2, log=[*record.log, {"step": 41} | peaks])
    totals, kinds, ranks = tables_of(plans, record)["Plan and memory"]
    # 4 MiB of b, 1 of c and 4 of d; 2 MiB of a, 4 of b and 1 of c. A row has one number of the optimizer.
    assert [(row["rank"], row["MiB of weights"], row["shards"]) for row in ranks] == [("0", "9", "4"), ("1", "7", "3")]
    assert [row["MiB of optimizer states"] for row in ranks] == ["1.25", "1.25"]
    assert [row["peak MiB of host"] for row in ranks] == ["700", "900"]
    assert [totals[0][name] for name in ("ranks", "on the fullest rank", "on the emptiest")] == ["2", "10.2", "8.25"]
    assert totals[0]["peak MiB of host, largest"] == "900"
    assert [(row["sharding"], row["tables"], row["MiB of weights"]) for row in kinds] == [
        ("table_wise", "1", "2"), ("row_wise", "1", "8"), ("data_parallel", "1", "1"), ("column_wise", "1", "4"),
    ]  # fmt: skip


def test_tensorboard_has_the_numbers_of_the_log(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    lines = read_metrics_log(run / "metrics.jsonl")
    of_evaluations = ("valid/like/auc", "gate/layers.0/like/shared")
    for name in (*(f"train/loss/{task}" for task in TASKS), "train/step_ms", *of_evaluations):
        logged = {line["step"]: line[name] for line in lines if name in line}
        # A resumed run makes some steps again, and TensorBoard has both.
        shown = {event.step: event.value for event in board.Scalars(name)}
        assert len(logged) > 1
        assert shown == pytest.approx(logged, rel=1e-6)  # fp32


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


def test_tensorboard_has_the_gates_of_all_rows_at_each_evaluation(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"histograms": 0}).Reload()
    tags = {f"gate_rows/layers.0/{task}/{group}" for task in TASKS for group in (*TASKS, "shared")}
    assert set(board.Tags()["histograms"]) == tags
    by_step = {line["step"]: line for line in read_metrics_log(run / "metrics.jsonl") if "valid/like/auc" in line}
    for tag in tags:
        events = board.Histograms(tag)
        assert [event.step for event in events] == list(by_step)
        for event in events:
            each, line = event.histogram_value, by_step[event.step]
            assert each.num == sum(each.bucket) == line["valid/like/rows"]
            assert each.sum / each.num == pytest.approx(line[tag.replace("gate_rows", "gate")])
            middles = np.array(each.bucket_limit) - 0.5 / len(each.bucket)
            # No row is farther than half a bin from the middle of its bin.
            assert np.dot(middles, each.bucket) / each.num == pytest.approx(
                each.sum / each.num, abs=0.5 / len(each.bucket)
            )


def test_the_log_has_the_peak_memory_of_each_rank(run: Path, by_heading: dict[str, list[Rows]]) -> None:
    peaks = [
        line["memory/host_mib/rank_0"] for line in read_metrics_log(run / "metrics.jsonl") if "valid/like/auc" in line
    ]
    # A process with torch takes 100 MiB at least.
    assert min(peaks) > 100
    [row] = by_heading["Plan and memory"][0]
    assert row["peak MiB of host, largest"] == f"{max(peaks):,.0f}"


@pytest.mark.long
def test_gates_and_peaks_are_those_of_all_ranks(tmp_path: Path) -> None:
    statuses, output = start(tmp_path / "run", "--train.max-steps", "2", "--data.eval-batch-size", "512", ranks=2).end()
    assert statuses == [0, 0], output
    [line] = [line for line in read_metrics_log(tmp_path / "run/metrics.jsonl") if "valid/like/auc" in line]
    assert min(line["memory/host_mib/rank_0"], line["memory/host_mib/rank_1"]) > 100
    board = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"histograms": 0}).Reload()
    for tag in board.Tags()["histograms"]:
        [event] = board.Histograms(tag)
        assert event.histogram_value.num == line["valid/like/rows"]


def test_the_projector_has_the_first_rows_of_tables(run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "predictions"))
    tables_of_run = ("like/user_id", "shared/user_id")
    line = write_report(ReportOptions((str(run),), projector=tables_of_run, projector_rows=30))
    assert line.startswith(f"projector: {run}/tensorboard, like/user_id, shared/user_id, 30 rows at most; ids without")
    config = ProjectorConfig()
    text_format.Parse((run / "tensorboard/projector_config.pbtxt").read_text(), config)
    assert [each.tensor_name for each in config.embeddings] == list(tables_of_run)
    weights = run / "best"
    whole = {name: torch.empty(*each.size) for name, each in saved_tensors(weights).items() if "user_id" in name}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(whole, checkpoint_id=weights, no_dist=True)
    for each in config.embeddings:
        shown = np.loadtxt(run / "tensorboard" / each.tensor_path, delimiter="\t")
        expected = next(table for name, table in whole.items() if f".{each.tensor_name}.weight" in name)
        assert list(each.tensor_shape) == [30, expected.shape[1]]
        assert shown == pytest.approx(expected[:30].numpy(), rel=1e-5)
        assert (run / "tensorboard" / each.metadata_path).read_text().split() == [str(i) for i in range(30)]
    with pytest.raises(UserError, match=re.escape("--projector like/userid is no table of")):
        write_report(ReportOptions((str(run),), projector=("like/userid",)))


def test_the_projector_names_raw_values(run: Path, tmp_path: Path) -> None:
    colors = ["red", "light blue", "red", "green", "red"] * 80
    rows = "".join(f"{color},{i % 3 % 2},{i % 7 % 2}\n" for i, color in enumerate(colors))
    (tmp_path / "raw.csv").write_text(f"color,clicked,bought\n{rows}")
    log = tmp_path / "log"
    prepare_log(PrepareOptions(str(tmp_path / "raw.csv"), label=("clicked", "bought"), out=str(log), report=False))
    vocabulary = pq.read_table(log / "vocabulary/color.parquet").to_pylist()
    record = RunRecord.read(run, "a")
    config = replace(record.config, data=replace(record.config.data, path=str(log)))
    record = replace(record, config=config, columns=Columns.select(load_schema(str(log))))
    values = read_values(vocabularies_of_run(record)["color"], [("id", "<", 3)])
    expected = [f"{row['id']}\t{row['value']}\t{row['count']}" for row in vocabulary if row["id"] < 3]
    assert values_file(3, values).splitlines() == ["id\tvalue\tcount", "0\t(unseen)\t", *expected]
    assert "1\tred\t" in expected[0]
    odd = Values(np.array([1]), ["a\tb\nc"], [2])
    assert values_file(3, odd).splitlines()[2:] == ["1\ta b c\t2", "2\t\t"]


def test_a_run_without_an_evaluation_has_a_page(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("best", "predictions", "metrics.json", "tensorboard"))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if "valid/" not in line))
    text = "\n\n".join(page_of([RunRecord.read(folder, "begun")]).parts)
    assert tables("\n## Runs\n\n" + text.partition("## ")[0])["Runs"][0][0]["state"] == "not ended"
    for sentence in ("No run has made an evaluation yet.", "No run has logged gates", "No peaks: an earlier version"):
        assert sentence in text
    (folder / "metrics.jsonl").write_text("")
    (folder / "plan.json").unlink()
    text = "\n\n".join(page_of([RunRecord.read(folder, "begun")]).parts)
    for sentence in ("No run has logged two losses", "No run has logged its speed.", "No run folder has a plan."):
        assert sentence in text


def test_runs_of_other_tasks_share_a_page(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("predictions"))
    for name in ("config.yaml", "schema.json", "plan.json", "metrics.json", "metrics.jsonl"):
        text = (other / name).read_text()
        (other / name).write_text(re.sub(r"\blike\b", "share", text))
    by_heading = tables("\n\n".join(page_of([RunRecord.read(run, "a"), RunRecord.read(other, "b")]).parts))
    judged = [(row["task"], row["run"]) for row in by_heading["Metrics"][0]]
    assert judged == [("finish", "a"), ("finish", "b"), ("like", "a"), ("share", "b")]
    assert {row["stream"]: row["share"] for row in by_heading["Gates"][0]}["like"] == "-"
    differing = [(row["option"], row["runs"]) for row in by_heading["Lineage"][1]]
    assert differing == [("--data.synthetic", "a"), ("--data.synthetic", "b")]


def test_a_calibrated_run_shows_before_and_after(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("predictions"))
    rows = RowsOfLog("log", "valid", 0, 100, "00")
    judged = BeforeAndAfter(90, 9, ne_before=0.81, ne_after=0.805, pcoc_before=1.25, pcoc_after=None)
    calibration = Calibration(
        weights="sha256:00",
        fitted_on=rows,
        judged_on=rows,
        platt={"like": PlattCurve(1.0, -0.2)},
        kept={"finish": "its rows have one label"},
        judged={"like": judged},
    )
    write_calibration(folder / "calibration.json", calibration)
    text = "\n\n".join(page_of([RunRecord.read(folder, "a")]).parts)
    assert "finish keeps its predictions: its rows have one label." in text
    [row] = tables(text)["Calibration"][0]
    expected = {"task": "like", "curve": "Platt", "NE after": "0.8050", "PCOC before": "1.2500", "PCOC after": "-"}
    assert row | expected == row


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


def test_a_run_without_a_positive_has_no_point_beside_one_that_has_some() -> None:
    without = Reliability(np.array([0.1]), np.array([0.0]), rows=3)
    points = Reliability(np.array([0.1, 0.4]), np.array([0.2, 0.3]), rows=40)
    diagonal, *lines = calibration({0: points, 1: without}).axes[0].lines
    assert diagonal.get_xdata().tolist() == [0.1, 0.4]
    assert [line.get_ydata().tolist() for line in lines] == [[0.2, 0.3], []]


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
    with pytest.raises(UserError, match=re.escape("21 runs are too many for a page; give at most 20.")):
        write_report(ReportOptions(tuple(f"{tmp_path}/{i}" for i in range(21)), out))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "predictions/part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match=re.escape("part-00000.parquet holds no predictions that can be read")):
        _ = RunRecord.read(copy, "copy").reliability
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join([lines[0], lines[1].replace(":", ";"), *lines[2:]]))
    with pytest.raises(DamagedError, match=re.escape("metrics.jsonl, line 2, is damaged")):
        write_report(ReportOptions((str(copy),), out))
    assert not Path(out).exists()


@pytest.mark.long
def test_the_page_of_twenty_runs_works_in_a_browser(run: Path, tmp_path: Path) -> None:
    folders = []
    for i in range(20):
        folder = tmp_path / f"a_run_with_a_long_name_of_seed_{i}"
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("predictions", "best", "checkpoints"))
        config = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(config.replace("\nseed: 0", f"\nseed: {i}"))
        plan = json.loads((folder / "plan.json").read_text())
        # On as many ranks as tables.
        spread = {name: table | {"ranks": [j]} for j, (name, table) in enumerate(plan["tables"].items())}
        (folder / "plan.json").write_text(json.dumps(plan | {"world_size": len(spread), "tables": spread}))
        folders.append(str(folder))
    file = tmp_path / "report.html"
    write_report(ReportOptions(tuple(folders), str(file)))
    with chromium() as browser:
        # Of each of two tasks the loss, AUC, logloss, PCOC and gates of two groups, two of speed, and each run's ranks.
        check_page(browser, file, charts=34)


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
