"""A whole comparison from the command line, its groups of rows and its diagnostics."""

import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from stem_torchrec import compare
from stem_torchrec.comparison import result_sections, runs
from stem_torchrec.comparison.built_in import built_in
from stem_torchrec.comparison.comparable import count_positives, read_keys
from stem_torchrec.comparison.comparable_sections import comparable_samples
from stem_torchrec.comparison.costs import cost_of
from stem_torchrec.comparison.diagnostics import information_abundance, linear_cka
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.log_by_log import train_logs, write_reports
from stem_torchrec.comparison.options import Request, read_command_line
from stem_torchrec.comparison.recommend import recommendation, validation_score
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.comparison.several_logs import RowsOfLogs
from stem_torchrec.comparison.task_scores import TaskScores, resample_together
from stem_torchrec.comparison.train_all import train_all
from stem_torchrec.config import SyntheticConfig, TrainConfig
from stem_torchrec.data import synthetic
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.models.gated_experts import GatedExperts
from stem_torchrec.runtime.errors import DivergedError, NoMemoryError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.runtime.report_file import Report
from stem_torchrec.training.configuration import load_config
from stem_torchrec.training.gate_weights import GateWeights
from stem_torchrec.training.loop import StepOutput, TrainLoop

from distributed import run_ranks
from runs import this_process
from studies.settings_report import write_report as write_trials


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    sizes = SyntheticConfig(train_rows=2048, valid_rows=512, test_rows=1500, missing=(0.1, 0.2))
    synthetic.generate(sizes, str(folder))
    return folder


def test_ratios_are_counted_in_the_training_log(log: Path) -> None:
    schema = load_schema(str(log))
    assert schema.group is not None
    pair = (schema.labels[0], schema.labels[1])
    columns = Columns.select(schema)
    positives = count_positives(find_row_groups(str(log), "train", schema, columns), columns, schema.group, pair)
    table = pq.read_table(log / "train")
    users = table.column(schema.group).to_pylist()
    counted = [Counter(u for u, y in zip(users, table.column(task).to_pylist(), strict=True) if y) for task in pair]
    some = np.array([*sorted(set(users))[:50], 10**9])
    totals = [sum(count.values()) for count in counted]
    for user, ratio in zip(some, positives.ratios(some), strict=True):
        a, b = (count[user] / total for count, total in zip(counted, totals, strict=True))
        expected = a / b if b else (math.inf if a else math.nan)
        assert ratio == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_an_item_may_be_null_and_then_has_no_positives(log: Path, tmp_path: Path) -> None:
    schema = load_schema(str(log))
    pair = (schema.labels[0], schema.labels[1])
    table = pq.read_table(log / "train")
    items = table.column("item_id").to_numpy()
    null = np.arange(len(items)) % 3 == 0
    position = table.schema.get_field_index("item_id")
    (tmp_path / "train").mkdir()
    pq.write_table(table.set_column(position, "item_id", pa.array(items, mask=null)), tmp_path / "train" / "0.parquet")
    columns = Columns.select(schema)
    row_groups = find_row_groups(str(tmp_path), "train", schema, columns)
    keys = read_keys(row_groups, columns, "item_id")
    assert keys.tolist() == np.where(null, -1, items).tolist()
    positives = count_positives(row_groups, columns, "item_id", pair)
    for i, task in enumerate(pair):
        label = table.column(task).to_numpy(zero_copy_only=False)
        assert positives.counts[:, i].sum() == np.nansum(label[~null])
    assert np.isnan(positives.ratios(keys[null])).all()


def test_gate_weights_are_means_over_the_rows() -> None:
    torch.manual_seed(0)
    reads = {"a": ("a", "shared"), "b": ("b", "shared"), "c": ("b",)}
    layer = GatedExperts(
        3, num_experts={"a": 2, "b": 1, "shared": 2}, reads=reads, trains=reads, expert_hidden=(4,), gate_hidden=(5,),
        gate_inputs={"a": "a", "b": "b", "c": "b"},
    )  # fmt: skip
    model = nn.ModuleDict({"layer": layer})
    batches = [{g: torch.randn(rows, 3) for g in ("a", "b", "shared")} for rows in (4, 7)]
    gates = GateWeights()
    with gates.watch(model):
        for batch in batches:
            layer(batch)
    layer(batches[0])  # No longer watched.
    inputs = torch.cat([batch["a"] for batch in batches])
    expected = layer.gates["a"](inputs).mean(dim=0)
    means = gates.mean()["layer"]
    assert means["a"] == pytest.approx({"a": expected[:2].sum().item(), "shared": expected[2:].sum().item()})
    assert sum(means["b"].values()) == pytest.approx(1)
    assert means["c"] == {"b": 1}  # One expert needs no gate.


def test_abundance_and_similarity_are_those_of_the_papers() -> None:
    torch.manual_seed(0)
    table = torch.randn(50, 4)
    values = torch.linalg.svdvals(table.double())
    assert information_abundance(table) == pytest.approx((values.sum() / values.max()).item())
    assert information_abundance(torch.outer(torch.randn(50), torch.randn(4))) == pytest.approx(1, abs=1e-3)
    rotated = 3 * table @ torch.linalg.qr(torch.randn(4, 4)).Q + 1
    assert linear_cka(table, rotated) == pytest.approx(1)
    assert linear_cka(table, torch.randn(50, 4)) < 0.3
    assert math.isnan(linear_cka(table[:1], table[1:2]))  # One row has no spread to compare.


MODELS = ["stem", "single_task", "ple"]


@pytest.fixture(scope="module")
def compared(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "out"
    call(folder, log, ",".join(MODELS))
    return folder


def call(folder: Path, log: Path, models: str, *options: str, seeds: str = "0,1") -> None:
    line = ["--recipe", "tiny", "--data.path", str(log), "--models", models, "--seeds", seeds, "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", *line, "--resamples", "20", "--item", "item_id", *options])
        compare.main()


def test_the_report_has_every_model_and_the_metrics_of_its_runs(compared: Path, log: Path) -> None:
    rows = pq.read_table(compared / "results.parquet").to_pylist()
    tasks = load_schema(str(log)).labels
    assert {(r["model"], r["seed"], r["task"]) for r in rows} == {
        (m, s, t) for m in MODELS for s in (0, 1) for t in tasks
    }
    for row in rows:
        folder = compared / "runs" / row["model"] / f"seed_{row['seed']}"
        if row["model"] == "single_task":
            folder /= row["task"]  # A model, and so a run, for each task.
        predictions = pq.read_table(folder / "predictions")
        label = predictions.column(f"label/{row['task']}").to_numpy()
        known = ~np.isnan(label)
        scores = predictions.column(f"prediction/{row['task']}").to_numpy()
        assert row["auc"] == pytest.approx(roc_auc_score(label[known], scores[known]), abs=1e-9)
    report = (compared / "report.md").read_text()
    for section in ("## Results", "## What each costs", "Comparable samples, by user", "by item", "## Who reads whom"):
        assert section in report
    values = [row["auc"] for row in rows if row["model"] == "ple" and row["task"] == tasks[0]]
    assert f"| {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} |" in report
    description = load_schema(str(log)).description
    assert description
    assert f"Log: {description}" in report
    differences = {
        (row["task"], row["metric"], row["model"], row["over"]): row
        for row in pq.read_table(compared / "differences.parquet").to_pylist()
    }
    gauc = {m: np.mean([r["gauc"] for r in rows if r["model"] == m and r["task"] == tasks[0]]) for m in MODELS}
    assert differences[tasks[0], "gAUC", "ple", "single_task"]["value"] == pytest.approx(
        gauc["ple"] - gauc["single_task"], abs=1e-9
    )
    loss = {m: [r["logloss"] for r in rows if r["model"] == m and r["task"] == tasks[0]] for m in MODELS}
    expected = np.mean(loss["ple"]) - np.mean(loss["single_task"])
    assert differences[tasks[0], "logloss", "ple", "single_task"]["value"] == pytest.approx(expected, abs=1e-9)
    assert "## Does stem win?" in report
    value = differences[tasks[0], "AUC", "stem", "ple"]["value"]
    assert value == -differences[tasks[0], "AUC", "ple", "stem"]["value"]
    assert f"{value:+.4f} [" in report.partition("## Does stem win?")[2].partition("##")[0]
    page = (compared / "report.html").read_text()
    assert "<figure><figcaption>" in page or '<figure class="wide"' in page
    assert not re.search(r"\bsrc=|<script", page)


@pytest.mark.long
def test_a_log_with_weights_is_compared_by_weighted_rows(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "log")
    schema = load_schema(str(log))
    save_schema(replace(schema, weight="w", label_weights={schema.labels[1]: "lw"}), str(tmp_path / "log"))
    for file in (tmp_path / "log").glob("*/*.parquet"):
        table = pq.read_table(file)
        rows = np.arange(len(table))
        table = table.append_column("w", pa.array(1 + rows % 3))
        pq.write_table(table.append_column("lw", pa.array((rows % 5) / 2)), file)
    out = tmp_path / "out"
    call(out, tmp_path / "log", "stem,single_task", "--train.max-steps", "4", seeds="0")
    metrics = {(row["model"], row["task"]): row for row in pq.read_table(out / "results.parquet").to_pylist()}
    compared = [row for row in pq.read_table(out / "differences.parquet").to_pylist() if row["model"] == "stem"]
    assert len(compared) == 6
    for row in compared:
        # The metrics of the runs are those of the weighted rows of all ranks (tests/test_row_weights.py).
        of_runs = [metrics[model, row["task"]][row["metric"].lower()] for model in ("stem", "single_task")]
        assert row["value"] == pytest.approx(of_runs[0] - of_runs[1], abs=1e-9)
        assert row["low"] <= row["value"] <= row["high"]


def test_the_report_has_raw_and_adjusted_p_values_of_one_family(compared: Path) -> None:
    rows = pq.read_table(compared / "differences.parquet").to_pylist()
    family = [row for row in rows if row["p_adjusted"] is not None and row["over"] == "single_task"]
    rivals = [row for row in rows if (row["model"], row["over"]) == ("stem", "ple")]
    report = (compared / "report.md").read_text()
    # Two tasks and three measures of two models over the base, and of stem over ple.
    assert "The family has 18 comparisons, whose p-values are adjusted by Holm's method" in report
    assert "is 0.095, times 18 it is 1.7 and above 0.05, so with so few draws none stands out on its own" in report
    assert len(family) == 12
    for row in [*family, *rivals]:
        assert 2 / 21 <= row["p"] <= row["p_adjusted"] <= 1
        assert f"] p {row['p']:.2g}, {row['p_adjusted']:.2g} |" in report
    unreported = [row for row in rows if (row["model"], row["over"]) == ("single_task", "single_task")]
    assert unreported == []
    # Twenty draws cannot tell anything from anything among 18.
    assert "better than" not in report
    assert "worse than" not in report


def test_a_task_without_positives_has_no_comparable_samples(compared: Path, log: Path, tmp_path: Path) -> None:
    first, second = load_schema(str(log)).labels[:2]
    shutil.copytree(log, tmp_path / "log")
    for file in (tmp_path / "log" / "train").glob("*.parquet"):
        table = pq.read_table(file)
        position = table.schema.get_field_index(second)
        column = table.column(second)
        zeros = pa.array(np.zeros(len(column)), column.type, mask=column.is_null().to_numpy(zero_copy_only=False))
        pq.write_table(table.set_column(position, second, zeros), file)
    line = ["--recipe", "tiny", "--data.path", str(tmp_path / "log"), "--seeds", "0", "--out", str(compared)]
    request = read_command_line([*line, "--models", "stem,single_task", "--item", "item_id"])
    comparison = Comparison(request.config, request.train, request.runs, (first, second))
    report = Report("Comparison")
    comparable_samples(report, ScoredRows(comparison))
    text = "\n".join(report.parts)
    assert text.count(f"{second} has no positives in the training log, so there is no ratio to split the rows by.") == 2
    assert "no positives |" not in text


def of_seed_0(folder: Path, log: Path, models: str = ",".join(MODELS)) -> Comparison:
    """The comparison in a folder, with the first seed alone."""
    line = ["--recipe", "tiny", "--data.path", str(log), "--seeds", "0", "--out", str(folder), "--models", models]
    request = read_command_line(line)
    return Comparison(request.config, request.train, request.runs, None)


def test_the_same_log_twice_tells_as_much_as_once(compared: Path, log: Path) -> None:
    once = of_seed_0(compared, log)
    second = replace(once, runs=[replace(run, log=2) for run in once.runs])
    both = RowsOfLogs(replace(once, runs=[*once.runs, *second.runs]), [once, second])
    alone = ScoredRows(once)
    assert both.rows == 2 * len(alone.rows)
    for task in alone.tasks:
        for measure in ("AUC", "gAUC", "logloss"):
            own, pooled = (each.resample(task, measure, draws=50) for each in (alone, both))
            for model in MODELS:
                # As a user who is drawn counts in both; sums of two round anew.
                np.testing.assert_allclose(pooled.drawn[model], own.drawn[model], rtol=1e-12)
    first = both.by_number(alone.tasks[0])[0]
    assert first["log 1"] == first["log 2"]


LOGS = ("log_1", "log_2")


def report_on_two_logs(compared: Path, log: Path, out: Path, *, left_out: str) -> None:
    """Writes the reports of a comparison that lacks a model on the second log."""
    one = of_seed_0(compared, log, "stem,single_task")
    config = replace(one.config, out=str(out), resamples=5)
    first, second = (
        replace(one, config=replace(config, out=str(out / at)), runs=[replace(run, log=i) for run in one.runs])
        for i, at in enumerate(LOGS, 1)
    )
    kept = [run for run in second.runs if run.model != left_out]
    second = replace(second, runs=kept, left_out={left_out: f"{left_out}, seed 0: the loss is nan."})
    write_reports(Request(replace(config, logs=LOGS), one.train, (), None, {}), [first, second])


def test_the_report_on_several_logs_is_without_a_model_that_is_left_out_on_one_and_each_is_a_family_of_its_own(
    compared: Path, log: Path, tmp_path: Path
) -> None:
    report_on_two_logs(compared, log, tmp_path, left_out="stem")
    sentence = "This is one of 3 reports on these models, each a family of comparisons of its own: p-values are "
    for folder, models in {".": ["single_task"], LOGS[0]: ["stem", "single_task"], LOGS[1]: ["single_task"]}.items():
        assert sentence in (tmp_path / folder / "report.md").read_text()
        rows = pq.read_table(tmp_path / folder / "results.parquet").to_pylist()
        assert list(dict.fromkeys(row["model"] for row in rows)) == models
    assert f"trained: log 2 ({log}): stem, seed 0: the loss" in (tmp_path / "report.md").read_text().replace("\\", "")
    assert "This is one of" not in (compared / "report.md").read_text()


def test_a_base_that_is_left_out_on_one_log_ends_the_report_on_all_and_not_that_on_another(
    compared: Path, log: Path, tmp_path: Path
) -> None:
    reason = rf"^log 2 \({log}\): single_task, seed 0: the loss is nan; the other models cannot .* --base single_task: "
    with pytest.raises(UserError, match=reason):
        report_on_two_logs(compared, log, tmp_path, left_out="single_task")
    assert [path.parent.name for path in tmp_path.glob("**/report.md")] == ["log_1"]


def test_logs_count_by_their_pairs_of_labels_and_share_their_users() -> None:
    generator = np.random.default_rng(0)
    logs = []
    for rows, users in ((300, range(40)), (900, range(20, 60))):
        positive = generator.random(rows) < 0.3
        scores = {m: [generator.random(rows) + positive for _ in range(2)] for m in ("a", "b")}
        logs.append(TaskScores(positive, generator.choice(np.array(users), rows), None, scores))
    pooled = resample_together(logs, "AUC", draws=30, confidence=0.95)
    for model in ("a", "b"):
        right = pairs = 0.0
        for each in logs:
            for scores in each.scores[model]:
                below = scores[each.labels][:, None] > scores[~each.labels][None]
                right, pairs = right + below.sum(), pairs + below.size
        assert pooled.whole[model] == pytest.approx(right / pairs, rel=1e-12)
    assert len(pooled.drawn["a"]) == 30


def family_of(
    tasks: Sequence[str], model: str, over: str, verdicts: Sequence[str]
) -> dict[tuple[str, str, str, str], Interval]:
    """Differences in AUC of two models with these verdicts."""
    numbers = {"better": (0.02, 0.001), "worse": (-0.02, 0.001), "within noise": (0.02, 0.5)}
    family = {}
    for task, verdict in zip(tasks, verdicts, strict=True):
        value, p = numbers[verdict]
        family[task, "AUC", model, over] = Interval(value, value - 0.01, value + 0.01, p, p, 0.05)
    return family


def test_the_model_that_validates_best_is_taken_only_where_the_test_rows_confirm_it(compared: Path, log: Path) -> None:
    comparison, tasks = of_seed_0(compared, log), load_schema(str(log)).labels
    scores = {run.model: validation_score(run, "auc") for run in comparison.runs}
    best, base = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    comparison = replace(comparison, config=replace(comparison.config, base=base))
    costs = {model: cost_of(comparison, model) for model in MODELS}
    for verdicts, taken in (
        (["better", "within noise"], best),
        (["better", "worse"], base),
        (["within noise", "within noise"], base),
    ):
        line = recommendation(comparison, family_of(tasks, best, base, verdicts), costs)
        assert line.startswith(f"Take {taken}")
        assert "\n" not in line
        assert (
            f"AUC over {base} {'-' if verdicts[0] == 'worse' else '+'}0.0200 [+0.0100, +0.0300] in {tasks[0]}" in line
        )
        assert f"in {tasks[1]} ({verdicts[1]})" in line
        times = costs[best].mib_of_weights / costs[base].mib_of_weights
        assert f"MiB of weights ({times:.2f} times those of {base})" in line
        assert (f"or only {tasks[1]} does" in line) == (taken == best)
    of_best = replace(comparison, config=replace(comparison.config, base=best))
    assert recommendation(of_best, {}, costs).startswith(f"Take {best}: no other model validates better (auc ")


def test_a_recommendation_compares_the_two_forms_of_a_model_in_the_same_family(
    compared: Path, log: Path, tmp_path: Path
) -> None:
    comparison = of_seed_0(compared, log)
    by_model = {run.model: run for run in comparison.runs}
    # As if ple were the form of stem with the weights of each task, and neither the first model nor the base.
    variants = {name: built_in()[name] for name in by_model} | {"ple": built_in()["stem_by_task"]}
    config = replace(comparison.config, out=str(tmp_path), resamples=20)
    comparison = replace(comparison, runs=[by_model[m] for m in ("single_task", "stem", "ple")], variants=variants)
    families = [
        result_sections.results(
            Report("forms"), ScoredRows(replace(comparison, config=replace(config, recommend=recommend)))
        )
        for recommend in (False, True)
    ]
    (first, further) = (set(family) for family in families)
    assert {key[2:] for key in further - first} == {("ple", "stem")}
    assert first < further


def test_the_same_command_trains_only_what_is_missing(
    compared: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = compared / "runs" / "stem" / "seed_0" / "test.json"
    before = tested.stat().st_mtime_ns
    interrupted = compared / "runs" / "ple" / "seed_1" / "test.json"
    kept = json.loads(interrupted.read_text())
    interrupted.unlink()
    call(compared, log, ",".join([*MODELS, "shared_bottom"]))
    assert "5 of 8 runs are done already" in capsys.readouterr().out
    assert tested.stat().st_mtime_ns == before
    # Tested again, to the same numbers.
    assert json.loads(interrupted.read_text())["metrics"] == kept["metrics"]
    assert "| shared_bottom |" in re.sub(r" +", " ", (compared / "report.md").read_text())


@pytest.mark.parametrize("damaged", [pytest.param(False, marks=pytest.mark.long), True])
def test_an_interrupted_run_ends_with_the_same_numbers(
    compared: Path,
    log: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damaged: bool,
) -> None:
    @contextmanager
    def at_once() -> Iterator[Event]:
        ending = Event()
        ending.set()
        yield ending

    with monkeypatch.context() as patch:
        patch.setattr(compare, "ending_on_signals", at_once)
        with pytest.raises(SystemExit, match=str(ExitStatus.RESUME.value)):
            call(tmp_path / "out", log, "single_task", seeds="0")
    folder = tmp_path / "out" / "runs" / "single_task" / "seed_0" / load_schema(str(log)).labels[0]
    if damaged:
        for file in folder.glob("checkpoints/*/progress.json"):
            file.write_text("?")
    call(tmp_path / "out", log, "single_task", seeds="0")
    output = capsys.readouterr().out
    assert ("can be read" in output and "; this run restarts from the beginning" in output) == damaged
    assert bool(re.search(rf"resuming after step \d from {folder}/checkpoints", output)) == (not damaged)
    assert not (folder / "checkpoints").exists()
    resumed, expected = (
        {r["task"]: r["auc"] for r in rows if r["model"] == "single_task" and r["seed"] == 0}
        for rows in (pq.read_table(out / "results.parquet").to_pylist() for out in (tmp_path / "out", compared))
    )
    assert resumed == expected


def test_a_model_that_cannot_be_trained_is_left_out_and_the_base_may_not(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MMoE diverges, OMoE lacks memory in a step, PLE in the search for its setting and AITM before anything is built.

    None of them is tried once more.
    """
    train, tried = runs.train, Counter[str]()

    def failing(config: TrainConfig, *args: Any, **options: Any) -> Any:
        tuning = "tuning" in Path(config.output_dir or "").parts
        tried[config.model.arch] += 1
        if config.model.arch == "mmoe" and not tuning:
            raise DivergedError("the loss is nan.")
        if config.model.arch == ("ple" if tuning else "omoe"):
            torch.empty(2**60)
        if config.model.arch == "aitm":
            raise NoMemoryError("this run needs at least 9.0 GiB.")
        return train(config, *args, **options)

    monkeypatch.setattr(runs, "train", failing)
    out, models = tmp_path / "out", "shared_bottom,mmoe,omoe,ple,aitm"
    tuned = ["--tune", "--tune-runs", "1", "--train.max-steps", "1"]
    call(out, log, models, *tuned, "--base", "shared_bottom", seeds="0,1")
    assert tried == {"shared_bottom": 3, "mmoe": 2, "omoe": 2, "ple": 1, "aitm": 1}
    report = (out / "report.md").read_text()
    for reason in (
        "mmoe, seed 0: the loss is nan.",
        r"omoe, seed 0: the memory does not suffice \(.*\); give smaller sizes.",
        r"ple could not be tuned: ple, .*: the memory does not suffice \(.*\); give smaller sizes.",
        "aitm could not be tuned: aitm, .*: this run needs at least 9.0 GiB.",
    ):
        assert re.search(f"Left out, as it could not be trained: {reason}", report.replace("\\", ""))
    assert {row["model"] for row in pq.read_table(out / "results.parquet").to_pylist()} == {"shared_bottom"}
    with pytest.raises(SystemExit, match=r"^2$"):
        call(out, log, models, *tuned, "--base", "mmoe", seeds="0,1")
    assert tried.total() == 9
    assert (
        "error: mmoe, seed 0: the loss is nan; the other models cannot be compared with --base mmoe"
        in capsys.readouterr().err
    )


def test_every_log_is_trained_on_and_the_results_of_each_run_are_read_once_whatever_is_left_out(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All models diverge, the base as well, on both logs; the next call tries none of them again."""
    read, files, tried = runs.read_results, Counter[Path](), Counter[str]()

    def diverging(config: TrainConfig, *args: Any, **options: Any) -> Any:
        tried[config.model.arch] += 1
        raise DivergedError("the loss is nan.")

    def counting(file: Path, *kinds: type) -> dict[str, Any]:
        files[file] += 1
        return read(file, *kinds)

    monkeypatch.setattr(runs, "train", diverging)
    monkeypatch.setattr(runs, "read_results", counting)
    synthetic.generate(SyntheticConfig(train_rows=512, valid_rows=128, test_rows=128, seed=1), str(tmp_path / "b"))
    models, out = ["stem", "mmoe", "ple"], tmp_path / "out"
    line = ["--recipe", "tiny", "--models", ",".join(models), "--base", "mmoe", "--seeds", "0,1"]
    request = read_command_line([*line, "--logs", str(log), str(tmp_path / "b"), "--out", str(out)])
    with join_process_group() as process:
        for calls in (1, 2):
            assert [list(each.left_out) for each in train_logs(request, process)] == [models, models]
            assert tried == dict.fromkeys(models, 2)
            assert files == {out / at / "runs" / m / "seed_0/test.json": calls for m in models for at in LOGS}
        request = read_command_line([*line, "--data.path", str(log), "--out", str(out / "log_1")])
        with pytest.raises(UserError, match=r"^mmoe, seed 0: the loss is nan; the other models cannot be compared"):
            train_all(request, process)


def test_results_of_a_run_that_ended_or_is_left_out_are_read(tmp_path: Path) -> None:
    metrics = {"like": {"auc": 0.7, "gauc": None, "rows": 3}}
    tested = {"parts": ["."], "metrics": metrics, "gates": {"layer": {"a": {"shared": 0.5}}}}
    run = runs.Run("stem", 0, tmp_path)
    for results, left_out in (
        ({**tested, "samples_per_second": 9.5}, None),
        ({**tested, "samples_per_second": None}, None),
        ({"left_out": "why", "lacks_memory": True}, "why"),
        # Of an earlier version.
        ({"diverged": "why"}, "why"),
    ):
        (tmp_path / runs.TEST_FILE).write_text(json.dumps(results))
        assert run.test_results() == results
        assert run.left_out() == left_out


def test_a_trial_of_settings_leaves_out_what_could_not_be_trained(compared: Path, log: Path, tmp_path: Path) -> None:
    one, failed = of_seed_0(compared, log, "stem,single_task"), runs.Run("wide/stem", 0, tmp_path / "failed")
    failed.folder.mkdir()
    (failed.folder / runs.TEST_FILE).write_text(json.dumps({"left_out": "stem, seed 0: the loss is nan."}))
    _, single = trained = [replace(run, model=f"log/{run.model}") for run in one.runs]
    trials = replace(one, runs=[*trained, failed, replace(single, model="wide/single_task")])
    write_trials(tmp_path, [trials, replace(one, runs=[failed])])
    report = (tmp_path / "settings.md").read_text()
    assert report.count("Left out, as it could not be trained: wide: stem, seed 0: the loss is nan.") == 2
    rows = pq.read_table(tmp_path / "settings.parquet").to_pylist()
    assert [row["setting"] for row in rows] == ["log", "wide"] * 2
    for row in rows:
        alone = row["setting"] == "wide"
        assert (not row["stem"], row["stem_over_single_task"] is None, row["stem_over_base"] is None) == (alone,) * 3
        assert row["single_task_over_base"]["value"] == 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"parts": 3, "metrics": {}, "gates": {}, "samples_per_second": null}', "parts is 3, but must be a list"),
        ('{"parts": ["."], "metrics": {}, "gates": {}}', "samples_per_second is missing"),
        ("{}", "parts is missing"),
        ("[]", "the content is [], but must be a mapping of fields"),
        ('{"diverged": 1}', "diverged is 1, but must be text"),
        ('{"diverged": "why", "parts": ["."]}', "there is no field 'parts'"),
        ('{"parts": ["."], "metr', "not whole JSON: EOF while parsing a string at line 1 column 22"),
    ],
)
def test_damaged_results_of_a_run_are_one_sentence_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / runs.TEST_FILE
    file.write_text(text)
    with pytest.raises(UserError) as error:
        runs.Run("stem", 0, tmp_path).test_results()
    assert str(error.value) == f"{file} is damaged ({reason}); delete it, and the same command makes it again."


def train_as_rank(line: list[str]) -> str:
    """Trains a comparison on this rank and returns what it prints."""
    with redirect_stdout(io.StringIO()) as output:
        train_all(read_command_line(line), this_process())
    return output.getvalue()


@pytest.mark.long
def test_two_ranks_test_every_row_once_and_rank_0_prints(log: Path, tmp_path: Path) -> None:
    line = ["--recipe", "tiny", "--data.path", str(log), "--seeds", "0", "--base", "stem", "--out", str(tmp_path)]
    output, silence = run_ranks(2, train_as_rank, [*line, "--models", "stem,shared_bottom"])
    assert re.search(r"run 2 of 2, 0\d:\d\d left: shared_bottom", output)
    assert silence == ""
    folder = tmp_path / "runs" / "stem" / "seed_0"
    predictions = pq.read_table(folder / "predictions")
    assert predictions.column("row").to_numpy().tolist() == list(range(1500))
    for task, metrics in json.loads((folder / "test.json").read_text())["metrics"].items():
        assert metrics["rows"] == (~np.isnan(predictions.column(f"label/{task}").to_numpy())).sum()


def train_without_memory_on_rank_1(line: list[str]) -> None:
    """The second rank has no memory for the first step, in which the first one waits for it."""
    process, make_step = this_process(), TrainLoop.train_step

    def train_step(loop: TrainLoop) -> StepOutput:
        return make_step(loop) if process.is_first else torch.empty(2**60)

    pytest.MonkeyPatch().setattr(TrainLoop, "train_step", train_step)
    train_all(read_command_line(line), process)


@pytest.mark.long
def test_a_model_for_which_one_of_two_ranks_lacks_memory_is_left_out_by_the_next_call(
    log: Path, tmp_path: Path
) -> None:
    line = ["--recipe", "tiny", "--data.path", str(log), "--seeds", "0,1", "--base", "stem", "--out", str(tmp_path)]
    line += ["--models", "mmoe,stem", "--train.max-steps", "2"]
    with pytest.raises(RuntimeError, match="AllocationError: the memory does not suffice"):
        run_ranks(2, train_without_memory_on_rank_1, line)
    results = json.loads((tmp_path / "runs" / "mmoe" / "seed_0" / "test.json").read_text())
    assert results["left_out"].startswith("mmoe, seed 0: the memory does not suffice (")
    output, _ = run_ranks(2, train_as_rank, line)
    assert "run 2 of 3: mmoe is left out" in output
    assert {folder.parent.name for folder in tmp_path.glob("runs/*/seed_1")} == {"stem"}


@pytest.mark.long
def test_torchrun_compares_and_adds_a_model(log: Path, tmp_path: Path) -> None:
    script = [str(Path(__file__).parent.parent / "stem_torchrec" / "compare.py"), "--recipe", "tiny"]
    options = ["--data.path", str(log), "--seeds", "0", "--base", "stem", "--out", str(tmp_path / "out")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, *script, *options]
    for models in ("stem,shared_bottom", "stem,shared_bottom,mmoe"):
        done = subprocess.run(
            [*command, "--resamples", "5", "--models", models], text=True, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    assert "2 of 3 runs are done already" in done.stdout
    assert done.stdout.count("run 1 of 1: mmoe") == 1
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {row["model"] for row in rows} == {"stem", "shared_bottom", "mmoe"}


def test_another_comparison_does_not_go_into_the_folder(
    compared: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        call(compared, log, "stem,single_task", "--model.embedding-dim", "4")
    assert "holds a comparison with other options" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("space", ["", "{sparse.learning_rate: [1e-5, 0.05], model.tower_hidden: [[6]]}"])
def test_each_model_is_set_to_the_setting_that_validates_best(log: Path, tmp_path: Path, space: str) -> None:
    (tmp_path / "space.yaml").write_text(space)
    lists = ["--learning-rates", "1e-5", "0.05", "--embedding-l2", "0"]
    options = ["--tune", *(["--space", str(tmp_path / "space.yaml")] if space else lists)]
    call(tmp_path / "out", log, "stem,single_task", *options, seeds="0")
    rows = pq.read_table(tmp_path / "out" / "tuning.parquet").to_pylist()
    tasks = load_schema(str(log)).labels
    parts = {"stem": tasks, **{f"single_task/{task}": (task,) for task in tasks}}
    assert len(rows) == 2 * len(parts)
    for name, labels in parts.items():
        model, _, task = name.partition("/")
        best = max((row for row in rows if row["model"] == name), key=lambda row: row["score"])
        assert [row for row in rows if row["model"] == name and row["chosen"]] == [best]
        config = load_config(str(tmp_path / "out" / "runs" / model / "seed_0" / task / "config.yaml"))
        assert config.sparse.learning_rate == best["learning_rate"]
        assert config.data.labels == labels
        assert (config.model.tower_hidden == (6,)) == bool(space)
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## What each was set to" in report
    assert ("tower_hidden" in report) == bool(space)


@pytest.mark.long
def test_a_comparison_on_two_logs_trains_on_each_and_ends_in_one_line(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a budget of two settings for each model, and with weights for each task."""
    other = SyntheticConfig(train_rows=2048, valid_rows=512, test_rows=900, missing=(0.1, 0.2), seed=1)
    synthetic.generate(other, str(tmp_path / "other"))
    line = ["--recipe", "tiny", "--logs", str(log), str(tmp_path / "other"), "--models", "stem,single_task"]
    options = ["--seeds", "0", "--resamples", "20", "--tune", "--tune-runs", "2", "--recommend", "--train.best-by-task"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", *line, *options, "--out", str(tmp_path / "out")])
        compare.main()
        first = capsys.readouterr().out
        compare.main()
    assert first.strip().splitlines()[-1].startswith("Take ")
    assert capsys.readouterr().out.count("1 of 1 runs") == 0
    report = (tmp_path / "out" / "report.md").read_text()
    assert "2,400 rows of the test split of 2 logs" in report
    assert "## Which to take" in report
    for number in (1, 2):
        tried = pq.read_table(tmp_path / "out" / f"log_{number}" / "tuning.parquet").to_pylist()
        settings = {(row["learning_rate"], row["embedding_l2"]) for row in tried}
        # Two settings, the same for stem and for the single-task model of each task.
        assert len(settings) == 2
        assert Counter(row["model"] for row in tried) == {"stem": 2, "single_task/finish": 2, "single_task/like": 2}
    config = load_config(str(tmp_path / "out" / "log_2" / "runs" / "single_task" / "seed_0" / "like" / "config.yaml"))
    assert not config.train.best_by_task
    assert config.data.path == str(tmp_path / "other")
