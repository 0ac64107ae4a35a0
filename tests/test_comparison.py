"""The comparison of models: its statistics against plain formulas, and a whole one from the command line."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from stem_torchrec.compare import main
from stem_torchrec.comparison.comparable import count_positives, group_rows, name_groups
from stem_torchrec.comparison.diagnostics import GateWeights, information_abundance, linear_cka
from stem_torchrec.comparison.options import read_command_line
from stem_torchrec.comparison.statistics import Interval, Ranking, auc_of, gauc_of, resample
from stem_torchrec.config_file import load_config
from stem_torchrec.data import synthetic
from stem_torchrec.data.files import Columns, find_row_groups
from stem_torchrec.data.schema import load_schema
from stem_torchrec.data.synthetic import SyntheticConfig
from stem_torchrec.errors import UserError
from stem_torchrec.models.gated_experts import GatedExperts


def test_a_weighted_auc_is_that_of_the_repeated_rows() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 20, 300).astype(float)  # With ties.
    positive = generator.random(300) < 0.3
    weights = generator.integers(0, 4, 300)
    expected = roc_auc_score(np.repeat(positive, weights), np.repeat(scores, weights))
    assert Ranking(scores, positive).auc(weights) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(Ranking(scores, positive).auc(positive.astype(int)))
    assert math.isnan(Ranking(np.empty(0), np.empty(0, dtype=bool)).auc(np.empty(0)))


def test_gauc_is_the_mean_over_the_drawn_users_by_their_rows() -> None:
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 400).astype(float)  # With ties.
    users = np.sort(generator.integers(0, 60, 400))
    generator.shuffle(users)
    _, user = np.unique(users, return_inverse=True)
    positive = generator.random(400) < 0.2
    draws = generator.integers(0, 3, user.max() + 1)
    total = weight = 0.0
    for i, times in enumerate(draws):
        mine = user == i
        if 0 < positive[mine].sum() < mine.sum():
            total += times * mine.sum() * roc_auc_score(positive[mine], scores[mine])
            weight += times * mine.sum()
    measure = gauc_of(scores, positive, user)
    assert measure(draws) == pytest.approx(total / weight, abs=1e-12)
    assert math.isnan(measure(np.zeros_like(draws)))
    nothing = np.empty(0, dtype=int)
    assert math.isnan(gauc_of(np.empty(0), np.empty(0, dtype=bool), nothing)(nothing))


def differences(
    scores: dict[str, list[np.ndarray]], positive: np.ndarray, users: np.ndarray, resamples: int
) -> dict[str, Interval]:
    """By AUC, with intervals of 90 %."""
    measures = {model: [auc_of(s, positive, users) for s in by_seed] for model, by_seed in scores.items()}
    drawn = resample(measures, users.max() + 1, resamples=resamples, confidence=0.9)
    return {model: drawn.difference(model, "a") for model in scores}


def simulated(difference: float, seed: int) -> tuple[dict[str, list[np.ndarray]], np.ndarray, np.ndarray]:
    """Two models on rows of 200 users who differ: the second sees the signal better by `difference`."""
    generator = np.random.default_rng(seed)
    users = np.repeat(np.arange(200), 10)
    signal = generator.normal(size=2000) + generator.normal(size=200)[users]
    positive = generator.random(2000) < 1 / (1 + np.exp(-signal))
    noise = generator.normal(size=(2, 2000))
    return {"a": [signal + noise[0]], "b": [(1 + difference) * signal + noise[1]]}, positive, users


def test_an_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    """Over 60 data sets without a difference, a 90 % interval leaves 0 out in 6; binomial 99.9 % is 0 to 14.

    Of users: with one seed there is no other draw.
    """
    wrong = 0
    for seed in range(60):
        scores, positive, users = simulated(0.0, seed)
        found = differences(scores, positive, users, 200)["b"]
        wrong += found.says != "within noise"
    assert wrong <= 14
    scores, positive, users = simulated(1.0, 0)
    found = differences(scores, positive, users, 200)
    assert found["b"].says == "better"
    assert found["a"].value == found["a"].low == found["a"].high == 0
    expected = roc_auc_score(positive, scores["b"][0]) - roc_auc_score(positive, scores["a"][0])
    assert found["b"].value == pytest.approx(expected, abs=1e-12)


def test_seeds_are_drawn_as_well_and_one_user_has_no_interval() -> None:
    scores, positive, users = simulated(0.0, 0)
    (lucky,), (unlucky,) = scores["b"], simulated(-0.5, 0)[0]["b"]
    by_seed = {"a": [scores["a"][0]] * 2, "b": [lucky, unlucky]}
    both = differences(by_seed, positive, users, 200)["b"]
    alone = differences({model: [by_seed[model][0]] for model in by_seed}, positive, users, 200)["b"]
    assert both.high - both.low > 1.3 * (alone.high - alone.low)
    single = differences(by_seed, positive, np.zeros(len(users), dtype=int), 9)
    assert math.isnan(single["b"].low)
    assert single["b"].says == "undefined"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log") / "log"
    sizes = SyntheticConfig(train_rows=4096, valid_rows=1024, test_rows=1500, missing=(0.1, 0.2))
    synthetic.generate(sizes, str(folder))
    return folder


def test_ratios_are_counted_in_the_training_log(log: Path) -> None:
    schema = load_schema(str(log))
    assert schema.group is not None
    pair = (schema.labels[0], schema.labels[1])
    columns = Columns(sparse={}, dense=(), labels=pair, group=schema.group)
    positives = count_positives(find_row_groups(str(log), "train", schema, columns), schema.group, pair)
    table = pq.read_table(log / "train")
    users = table.column(schema.group).to_pylist()
    counted = [Counter(u for u, y in zip(users, table.column(task).to_pylist(), strict=True) if y) for task in pair]
    asked = np.array([*sorted(set(users))[:50], 10**9])
    totals = [sum(count.values()) for count in counted]
    for user, ratio in zip(asked, positives.ratios(asked), strict=True):
        a, b = (count[user] / total for count, total in zip(counted, totals, strict=True))
        expected = a / b if b else (math.inf if a else math.nan)
        assert ratio == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_groups_are_named_and_an_edge_opens_its_bin() -> None:
    names = name_groups(("like", "view"), (0.5, 2.0))
    ratios = np.array([math.nan, 0.0, 0.1, 0.5, 1.9, 2.0, math.inf])
    assert [names[group] for group in group_rows(ratios, (0.5, 2.0))] == [
        "no positives",
        "only view",
        "0 to 0.5",
        "0.5 to 2",
        "0.5 to 2",
        "2 to inf",
        "only like",
    ]


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
    found = gates.mean()["layer"]
    assert found["a"] == pytest.approx({"a": expected[:2].sum().item(), "shared": expected[2:].sum().item()})
    assert sum(found["b"].values()) == pytest.approx(1)
    assert found["c"] == {"b": 1}  # One expert needs no gate.


def test_abundance_and_similarity_are_those_of_the_papers() -> None:
    torch.manual_seed(0)
    table = torch.randn(50, 4)
    values = torch.linalg.svdvals(table.double())
    assert information_abundance(table) == pytest.approx((values.sum() / values.max()).item())
    assert information_abundance(torch.outer(torch.randn(50), torch.randn(4))) == pytest.approx(1, abs=1e-3)
    rotated = 3 * table @ torch.linalg.qr(torch.randn(4, 4)).Q + 1
    assert linear_cka(table, rotated) == pytest.approx(1)
    assert linear_cka(table, torch.randn(50, 4)) < 0.3


MODELS = ["stem", "single_task", "ple", "stem_gate_task"]


@pytest.fixture(scope="module")
def compared(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "out"
    call(folder, log, ",".join(MODELS))
    return folder


def call(folder: Path, log: Path, models: str, *options: str) -> None:
    line = ["--recipe", "tiny", "--data.path", str(log), "--models", models, "--seeds", "0,1", "--out", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", *line, "--resamples", "20", "--item", "item_id", *options])
        main()


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
    said = {
        (row["task"], row["metric"], row["model"], row["over"]): row
        for row in pq.read_table(compared / "differences.parquet").to_pylist()
    }
    gauc = {m: np.mean([r["gauc"] for r in rows if r["model"] == m and r["task"] == tasks[0]]) for m in MODELS}
    assert said[tasks[0], "gAUC", "ple", "single_task"]["value"] == pytest.approx(
        gauc["ple"] - gauc["single_task"], abs=1e-9
    )
    assert "## Does stem win?" in report
    value = said[tasks[0], "AUC", "stem", "ple"]["value"]
    assert value == -said[tasks[0], "AUC", "ple", "stem"]["value"]
    assert f"{value:+.4f} [" in report.partition("## Does stem win?")[2].partition("##")[0]
    page = (compared / "report.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r'src="(?!data:)', page)


def test_the_same_command_trains_nothing_again_and_more_models_join(
    compared: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tested = compared / "runs" / "stem" / "seed_0" / "test.json"
    before = tested.stat().st_mtime_ns
    interrupted = compared / "runs" / "ple" / "seed_1" / "test.json"
    kept = json.loads(interrupted.read_text())
    interrupted.unlink()
    call(compared, log, ",".join([*MODELS, "shared_bottom"]))
    assert "7 of 10 runs are done already" in capsys.readouterr().out
    assert tested.stat().st_mtime_ns == before
    # Trained again to the same numbers.
    assert json.loads(interrupted.read_text())["metrics"] == kept["metrics"]
    assert "| shared_bottom |" in re.sub(r" +", " ", (compared / "report.md").read_text())


def test_two_ranks_compare_and_go_on(log: Path, tmp_path: Path) -> None:
    script = [
        str(Path(__file__).parent.parent / "stem_torchrec" / "compare.py"),
        "--recipe",
        "tiny",
        "--resamples",
        "5",
    ]
    options = ["--data.path", str(log), "--seeds", "0", "--out", str(tmp_path / "out"), "--data.batch-size", "128"]
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *script, *options]
    said = []
    for models in ("stem,single_task", "stem,single_task,mmoe"):
        done = subprocess.run([*run, "--models", models], text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert re.search(r"run 2 of 2, 0\d:\d\d left: single_task", said[0])
    assert "2 of 3 runs are done already" in said[1]
    assert said[1].count("run 1 of 1: mmoe") == 1
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    first = next(row for row in rows if row["model"] == "stem")
    predictions = pq.read_table(tmp_path / "out" / "runs" / "stem" / "seed_0" / "predictions")
    assert predictions.column("row").to_numpy().tolist() == list(range(1500))
    label = predictions.column(f"label/{first['task']}").to_numpy()
    assert first["rows"] == (~np.isnan(label)).sum()


def test_another_comparison_does_not_go_into_the_folder(
    compared: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        call(compared, log, "stem,single_task", "--model.embedding-dim", "4")
    assert "holds a comparison of other options" in capsys.readouterr().err


def test_each_model_is_set_to_the_cell_that_validates_best(log: Path, tmp_path: Path) -> None:
    options = ["--tune", "--learning-rates", "1e-5", "0.05", "--embedding-l2", "0"]
    call(tmp_path / "out", log, "stem,single_task", *options)
    rows = pq.read_table(tmp_path / "out" / "tuning.parquet").to_pylist()
    tasks = load_schema(str(log)).labels
    parts = {"stem": tasks, **{f"single_task/{task}": (task,) for task in tasks}}
    assert len(rows) == 2 * len(parts)
    for name, labels in parts.items():
        model, _, task = name.partition("/")
        best = max((row for row in rows if row["model"] == name), key=lambda row: row["score"])
        assert [row for row in rows if row["model"] == name and row["chosen"]] == [best]
        for seed in (0, 1):
            config = load_config(str(tmp_path / "out" / "runs" / model / f"seed_{seed}" / task / "config.yaml"))
            assert config.sparse.learning_rate == best["learning_rate"]
            assert config.data.labels == labels
    assert "## What each was set to" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--models", "stem,mmmoe"], "there is no model 'mmmoe', only all, stem, .*; did you mean 'me_mmoe'|'mmoe'"),
        (["--models", "stem"], "--base is 'single_task', which is not among --models stem; add it there."),
        (["--seeds", "0,x"], "--seeds is '0,x', but must be different whole numbers below 2.32, as in 0,1,2."),
        (["--confidence", "95"], "--confidence is 95.0, but must be between 0 and 1, as 0.95 is."),
        (["--ratio-edges", "2", "1"], r"--ratio-edges is \[2.0, 1.0\], but must ascend above 0, as 0.5 2 do."),
        (["--resamples", "0"], "--resamples is 0, but must be at least 1."),
    ],
)
def test_what_makes_no_sense_is_refused(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_command_line(["--out", "x", *options])
