"""The comparison on several sources: one family of differences, what is done in part, and who shares a folder."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from stem_torchrec.calibration.curves import logits
from stem_torchrec.comparison.intervals import auc_of
from stem_torchrec.comparison.scored_rows import ScoredRows
from stem_torchrec.config import SyntheticConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config

from earlier_versions import forget
from gains import family
from gains.averages import averages
from gains.done import Done
from gains.draws import Draws
from gains.options import read_command_line
from gains.run import compare_sources
from gains.sources import Source, comparisons_on, read_sources
from owners import owned_by_another_process

TRAIN = ("--recipe", "tiny", "--train.max-steps", "2", "--model.expert-hidden", "4")
SIZES = SyntheticConfig(train_rows=600, valid_rows=300, test_rows=900, users=120)
DRAWS = 300


def run(folder: Path, *options: str, models: str = "stem", source: str | None = None) -> None:
    sources = read_sources([str(folder / "sources.yaml")])
    named = f"{source}={','.join(sources[source].logs)}" if source else str(folder / "sources.yaml")
    line = [*TRAIN, "--sources", named, "--out", str(folder / "out"), "--models", models]
    compare_sources(*read_command_line([*line, "--base", "mmoe", "--resamples", str(DRAWS), "--seeds", "0", *options]))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "pays.parquet").to_pylist()


def report_of(folder: Path) -> str:
    return (folder / "out" / "pays.md").read_text()


def shifted(predictions: Path, by: float) -> None:
    """Moves the predictions of finish, each row by another part of `by`."""
    (file,) = predictions.glob("*.parquet")
    table = pq.read_table(file)
    name = "prediction/finish"
    moved = table[name].to_numpy() + by * np.random.default_rng(0).random(len(table))
    pq.write_table(table.set_column(table.column_names.index(name), name, [moved]), file)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two models on `one`; those on `both`, two logs, and on `mean` are copies of them."""
    folder = tmp_path_factory.mktemp("pays")
    synthetic.generate(SIZES, str(folder / "a"))
    synthetic.generate(replace(SIZES, seed=1), str(folder / "b"))
    (folder / "sources.yaml").write_text(
        f"one: {{logs: [{folder}/a]}}\n"
        f"both: {{logs: [{folder}/a, {folder}/b]}}\n"
        f"mean: {{logs: [{folder}/a], tasks: mean, options: --model.expert-hidden 8}}\n"
    )
    run(folder, "--only", "one")
    for copied in ("both/log_1", "both/log_2", "mean"):
        shutil.copytree(folder / "out/one/runs", folder / "out" / copied / "runs")
    shifted(folder / "out/both/log_2/runs/stem/seed_0/predictions", 0.1)
    run(folder, "--report-only")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "out", tmp_path / "out")
    shutil.copy(trained / "sources.yaml", tmp_path)
    return tmp_path


def test_differences_are_those_of_models_that_are_drawn_together(folder: Path) -> None:
    rows = {(row["source"], row["task"]): row for row in rows_of(folder)}
    sources = read_sources([str(folder / "sources.yaml")])
    line = [*TRAIN, "--models", "mmoe,stem", "--base", "mmoe", "--seeds", "0"]
    one, *_ = comparisons_on(sources, line, out=str(folder / "out"), split="test")
    (mmoe, stem) = (Done(one).comparison(0, model, [0]) for model in ("mmoe", "stem"))
    together = ScoredRows(replace(stem, runs=[*mmoe.runs, *stem.runs]))
    resampled = {task: together.resample(task, draws=DRAWS) for task in ("finish", "like")}
    for task in ("finish", "like"):
        interval = resampled[task].difference("stem", "mmoe")
        assert {name: rows["one", task][name] for name in interval.numbers} == pytest.approx(interval.numbers)
    drawn = np.mean([each.drawn["stem"] - each.drawn["mmoe"] for each in resampled.values()], axis=0)
    mean = rows["mean", "mean over tasks"]
    assert mean["value"] == pytest.approx(np.mean([rows["one", task]["value"] for task in ("finish", "like")]))
    assert [mean["low"], mean["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    assert rows["both", "finish"]["value"] != pytest.approx(rows["one", "finish"]["value"])


def test_all_sources_and_tasks_are_one_family(folder: Path) -> None:
    rows = rows_of(folder)
    assert len(rows) == 5
    _, adjusted, *_ = multipletests([row["p"] for row in rows], method="holm")
    assert [row["p_adjusted"] for row in rows] == pytest.approx(adjusted.tolist())
    assert "The family has 5 comparisons" in report_of(folder)
    verdicts = [row["verdict"] for row in rows]
    above, below = sum(row["low"] > 0 for row in rows), sum(row["high"] < 0 for row in rows)
    mean = np.mean([row["value"] for row in rows])
    line = next(line for line in report_of(folder).splitlines() if line.startswith("| stem "))
    assert [cell.strip() for cell in line.split("|")[1:10]] == [
        *("stem", "5", *(str(verdicts.count(name)) for name in ("better", "worse", "within noise", "undefined"))),
        *(str(above), str(below), f"{mean:+.4f}"),
    ]


def test_a_report_on_what_is_done_trains_nothing_and_lists_what_is_missing(folder: Path) -> None:
    # As an earlier version has trained it, which did not have these options.
    forget(folder / "out/one/comparison.yaml", "train.balance", "train.train.best_by_task")
    run(folder, "--report-only", "--seeds", "0,1", models="stem,ple")
    assert not (folder / "out/one/runs/ple").exists()
    assert {(row["model"], tuple(row["seeds"])) for row in rows_of(folder)} == {("stem", (0,))}
    assert "Not done yet: ple seed 0, mmoe seed 1, stem seed 1, ple seed 1." in report_of(folder)


def test_results_of_other_options_are_not_reported(folder: Path) -> None:
    with pytest.raises(UserError, match="out/one holds a comparison with other options or of another log"):
        run(folder, "--report-only", "--split", "valid", source="one")


@pytest.mark.long
def test_draws_are_computed_once(folder: Path) -> None:
    def kept() -> tuple[int, list[float]]:
        (file,) = folder.glob("out/one/draws/stem/*.parquet")
        return file.stat().st_mtime_ns, pq.read_table(file)["drawn"][0].as_py()

    written, drawn = kept()
    run(folder, "--report-only", "--resamples", "100", source="one")
    assert kept() == (written, drawn)
    assert "come from 100 draws" in report_of(folder)
    run(folder, "--report-only", "--resamples", "400", source="one")
    later, more = kept()
    assert later > written
    assert more[:DRAWS] == drawn
    assert len(more) == 400
    # Predictions of another training.
    shifted(folder / "out/one/runs/stem/seed_0/predictions", 5.0)
    results = folder / "out/one/runs/stem/seed_0/test.json"
    results.write_text(results.read_text().replace('"auc": 0.', '"auc": 0.1'))
    run(folder, "--report-only", source="one")
    assert kept()[1] != more[:DRAWS]


def test_without_a_number_there_are_draws_for_several_times_the_family(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def drawn(done: Done, model: str, seeds: Sequence[int], number: int) -> dict[str, Draws]:
        asked.append(number)
        return {task: Draws(0.5, np.linspace(0.4, 0.6, number), "users", complete=True) for task in done.tasks}

    monkeypatch.setattr(family, "draws_of", drawn)
    sources = read_sources([str(folder / "sources.yaml")])
    line = [*TRAIN, "--models", "mmoe,stem", "--base", "mmoe", "--seeds", "0", "--confidence", "0.99"]
    done = [Done(each) for each in comparisons_on(sources, line, out=str(folder / "out"), split="test")]
    text = family.compare(done, comparisons_on(sources, line, out=str(folder / "out"), split="test")[0].request.config)
    # Five comparisons, at a level of 0.01.
    assert set(asked) == {4 * 5 * 2 * 100}
    assert "The smallest p-value that so many draws allow is 0.0005, times 5 it is 0.0025." in text.text


def test_a_source_on_which_another_process_is_at_work_is_left_to_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owned_by_another_process(folder / "out/one")
    run(folder, models="stem,ple", source="one")
    assert "left to another process: " in capsys.readouterr().out
    assert not (folder / "out/one/runs/ple").exists()
    assert len(rows_of(folder)) == 2


def test_a_mean_over_tasks_needs_all_labels(folder: Path) -> None:
    (file,) = (folder / "out/mean/runs/stem/seed_0/predictions").glob("*.parquet")
    table = pq.read_table(file)
    labels = np.where(np.arange(len(table)) == 3, np.nan, table["label/like"].to_numpy())
    pq.write_table(table.set_column(table.column_names.index("label/like"), "label/like", [labels]), file)
    shutil.rmtree(folder / "out/mean/draws")
    with pytest.raises(
        UserError, match="source mean: its tasks are to be averaged, but some rows have no label of like"
    ):
        run(folder, "--report-only")


def test_a_report_on_the_validation_split_says_so(folder: Path) -> None:
    run(folder, "--report-only", "--split", "valid", "--out", str(folder / "valid"), source="one")
    text = (folder / "valid/pays.md").read_text()
    assert "**This is the validation split**" in text
    assert "Nothing can be compared yet." in text


def with_second_seed(folder: Path) -> None:
    """Copies of the runs on `one`, with other predictions of finish, as a second seed."""
    for model in ("mmoe", "stem"):
        shutil.copytree(folder / "out/one/runs" / model / "seed_0", folder / "out/one/runs" / model / "seed_1")
        shifted(folder / "out/one/runs" / model / "seed_1/predictions", 0.1)


def test_two_runs_of_the_base_are_a_model_of_the_family_and_a_rival_of_the_others(folder: Path) -> None:
    with_second_seed(folder)
    run(folder, "--seeds", "0,1", "--report-only", "--rival-of-two", source="one")
    rows = {(row["task"], row["model"], row["base"]): row for row in rows_of(folder)}
    pairs = [("stem", "mmoe"), ("mmoe_of_two", "mmoe"), ("stem", "mmoe_of_two")]
    assert rows.keys() == {(task, *pair) for task in ("finish", "like") for pair in pairs}
    adjusted = multipletests([row["p"] for row in rows.values()], method="holm")[1]
    assert [row["p_adjusted"] for row in rows.values()] == pytest.approx(adjusted.tolist())
    gain = rows["finish", "mmoe_of_two", "mmoe"]
    differences = [rows["finish", *pair]["value"] for pair in pairs]
    assert differences[0] == pytest.approx(differences[1] + differences[2])
    assert gain["mib_of_weights"] == 2 * gain["mib_of_weights_of_base"]
    assert gain["seconds"] == pytest.approx(2 * gain["seconds_of_base"])
    assert "## Over mmoe_of_two in all" in report_of(folder)
    # What a second run gains over one, in the draws of the users of all models: seeds make no difference to it.
    line = [*TRAIN, "--models", "mmoe,stem", "--base", "mmoe", "--seeds", "0,1"]
    sources = read_sources([str(folder / "sources.yaml")])
    done = Done(comparisons_on({"one": sources["one"]}, line, out=str(folder / "out"), split="test")[0])
    scored = done.scored("mmoe", [0, 1])
    assert isinstance(scored, ScoredRows)
    known, positive, user = scored.labeled("finish")
    runs = [scores[known].astype(np.float64) for scores in scored.scores["finish"]["mmoe"]]
    first, second, both = (auc_of(each, positive, user) for each in (*runs, sum(map(logits, runs))))
    generator, gains, users = np.random.default_rng(0), [], int(user.max()) + 1
    for _ in range(DRAWS):
        draw = np.bincount(generator.integers(users, size=users), minlength=users)
        generator.integers(2, size=2)
        gains.append(both(draw) - (first(draw) + second(draw)) / 2)
    assert [gain["low"], gain["high"]] == pytest.approx(np.quantile(gains, [0.025, 0.975]).tolist(), abs=1e-12)


def test_every_run_is_in_a_file_with_its_metrics_and_its_costs(folder: Path) -> None:
    with_second_seed(folder)
    run(folder, "--seeds", "0,1", "--report-only", source="one")
    rows = pq.read_table(folder / "out" / "runs.parquet").to_pylist()
    assert [(row["model"], row["seed"], row["task"]) for row in rows] == [
        (model, seed, task) for seed in (0, 1) for model in ("mmoe", "stem") for task in ("finish", "like")
    ]
    assert {(row["source"], row["log"], row["steps"], row["best_step"], row["models_kept"]) for row in rows} == {
        ("one", "a", 2, 2, 1)
    }
    table = pq.read_table(folder / "out/one/runs/stem/seed_0/predictions")
    label, score = (table[f"{name}/finish"].to_numpy() for name in ("label", "prediction"))
    (stem,) = (row for row in rows if (row["model"], row["seed"], row["task"]) == ("stem", 0, "finish"))
    known = ~np.isnan(label)
    assert stem["auc"] == pytest.approx(roc_auc_score(label[known], score[known]))
    (of_pays,) = (row for row in rows_of(folder) if (row["model"], row["task"]) == ("stem", "finish"))
    assert stem["mib_of_weights"] == pytest.approx(of_pays["mib_of_weights"])


@pytest.mark.long
def test_each_log_has_the_setting_that_validates_best_and_the_report_tells_which(folder: Path) -> None:
    (folder / "space.yaml").write_text("{sparse.learning_rate: [1e-9, 0.1]}")
    options = ("--tune", "--space", str(folder / "space.yaml"), "--train.max-steps", "8")
    run(folder, *options, "--out", str(folder / "tuned"), source="both")
    best = {
        (log, model): max(
            float(json.loads(file.read_bytes())["score"])
            for file in (folder / f"tuned/both/{log}/tuning/{model}").glob("*/score.json")
        )
        for log in ("log_1", "log_2")
        for model in ("mmoe", "stem")
    }
    for (log, model), score in best.items():
        chosen = load_config(str(folder / f"tuned/both/{log}/runs/{model}/seed_0/config.yaml")).sparse.learning_rate
        name = f"learning_rate={chosen:g}"
        tried = json.loads((folder / f"tuned/both/{log}/tuning/{model}/{name}/score.json").read_bytes())
        assert tried["score"] == score
    text = (folder / "tuned/pays.md").read_text()
    assert "Settings chosen by validation with seed 0, and on how many logs:" in text
    assert re.search(r"- `stem`: learning_rate=.* on [12]", text)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            ["--sources", "a=x", "--rival-of-two", "--seeds", "0"],
            "--rival-of-two averages two runs, but --seeds is '0'; give two seeds or more.",
        ),
        ([], "--sources is missing; give NAME=LOG for each, or a YAML file."),
        (["--sources", "a=x", "b"], "--sources has 'b', but must have NAME=LOG or NAME=LOG1,LOG2, each name once."),
        (["--sources", "a=x", "a=y"], "--sources has 'a=y', but must have NAME=LOG or NAME=LOG1,LOG2, each name once."),
        (["--sources", "../a=x"], "--sources: the source '../a' must have a name of letters, digits and _.- only."),
        (["--sources", "a=x", "--only", "b"], "--only names 'b', but the sources are a."),
        (["--sources", "a=x", "--logs", "y"], "--logs does not apply to several sources; leave it out."),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_sentence(line: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        read_command_line([*line, "--out", "x"])
    assert str(error.value) == sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a", "is not a mapping of sources; write lines like"),
        ("a: {log: [x]}", "a: there is no field 'log'; did you mean 'logs'?"),
        ("a: {logs: []}", "a: logs is empty; name a log."),
        ("a: {logs: [x], tasks: all}", "a: tasks is 'all', but must be 'each' or 'mean'."),
    ],
)
def test_a_wrong_file_of_sources_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_sources([str(tmp_path / "s.yaml")])


def test_an_option_that_does_not_fit_a_source_names_it(tmp_path: Path) -> None:
    synthetic.generate(SIZES, str(tmp_path / "a"))
    sources = {"a": Source((str(tmp_path / "a"),), options="--loss.kinds likes focal")}
    with pytest.raises(UserError, match=r"source a: --loss.kinds names the task 'likes', but the tasks are"):
        comparisons_on(sources, [*TRAIN, "--models", "stem", "--base", "stem"], out=str(tmp_path / "o"), split="test")


@pytest.mark.long
def test_the_same_command_resumes_and_takes_further_sources_models_and_seeds(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "sources.yaml").write_text(f"both: {{logs: [{trained}/a, {trained}/b]}}\n")
    run(tmp_path, "--split", "valid")
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("test.json")}
    assert len(done) == 4
    with (tmp_path / "sources.yaml").open("a") as file:
        file.write(f"one: {{logs: [{trained}/a]}}\n")
    run(tmp_path, "--split", "valid", "--seeds", "0,1", models="stem,stem_by_task")
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list(tmp_path.rglob("test.json"))) == 18
    assert {(row["source"], row["model"], row["split"], tuple(row["seeds"])) for row in rows_of(tmp_path)} == {
        (source, model, "valid", (0, 1)) for source in ("both", "one") for model in ("stem", "stem_by_task")
    }


def test_two_runs_together_are_the_mean_of_their_logits(folder: Path) -> None:
    with_second_seed(folder)
    runs = folder / "out/one/runs/mmoe"
    shutil.rmtree(runs / "seed_1")
    shutil.copytree(runs / "seed_0", runs / "seed_1")
    run(folder, "--seeds", "0,1", "--report-only")
    line = [*TRAIN, "--models", "mmoe,stem", "--base", "mmoe", "--seeds", "0,1"]
    sources = read_sources([str(folder / "sources.yaml")])
    done = Done(comparisons_on({"one": sources["one"]}, line, out=str(folder / "out"), split="test")[0])
    # Two equal runs are as one.
    assert all(one == pytest.approx(two) for one, two in averages(done, "mmoe").values())
    stem = averages(done, "stem")
    assert stem["like"][0] == pytest.approx(stem["like"][1])
    columns = [each.predictions() for each in done.comparison(0, "stem", [0, 1]).runs]
    p, q = (each["prediction/finish"].astype(np.float64) for each in columns)
    logits = np.log(p / (1 - p)) + np.log(q / (1 - q))
    assert stem["finish"][1] == pytest.approx(roc_auc_score(columns[0]["label/finish"], logits))
    assert stem["finish"][0] != pytest.approx(stem["finish"][1])
    assert "| finish: AUC of a run   | of two averaged   |" in report_of(folder)
