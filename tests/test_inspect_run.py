"""What stem-inspect tells of a run are the numbers of its weights, log and evaluation; of two, a comparison's."""

import json
import math
import shutil
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from stem_torchrec import inspect_run
from stem_torchrec.checkpoints.weights import saved_tensors
from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.diagnostics import linear_cka
from stem_torchrec.comparison.runs import PREDICTIONS, TEST_FILE, Run
from stem_torchrec.comparison.scored_rows import Comparison, ScoredRows
from stem_torchrec.config import StartConfig, SyntheticConfig, TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.schema import load_schema, save_schema
from stem_torchrec.data.synthetic import generate
from stem_torchrec.inspection.gate_facts import GateFacts
from stem_torchrec.inspection.inspect_runs import check_unchanged, inspect_runs
from stem_torchrec.inspection.options import InspectOptions
from stem_torchrec.inspection.prediction_sections import even_rows
from stem_torchrec.inspection.same_ids import other_value
from stem_torchrec.inspection.sections import as_text, of_runs
from stem_torchrec.inspection.start_weights import _continue
from stem_torchrec.inspection.table_facts import TableFacts, dead_tables, feature_facts
from stem_torchrec.inspection.two_runs import run_whose_log_both_read
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.models.table import MODELS
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.starting.id_maps import IdMap
from stem_torchrec.starting.id_spaces import read_id_spaces
from stem_torchrec.starting.record import LogRecord
from stem_torchrec.training.metrics_log import read_metrics_log
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import train
from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run

from browser import check_page, chromium

TASKS = ("finish", "like")
ALONE = Process(0, 1, 1, torch.device("cpu"))
"""For what needs no process group, as it predicts no rows."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one log, the first one also in the other layout, and one that goes on from it with more ids.

    Its runs are a, packed, b and grown.
    """
    folder = tmp_path_factory.mktemp("inspected")
    generate(SyntheticConfig(train_rows=1024, valid_rows=700), str(folder / "log"))
    schema = load_schema(str(folder / "log"))
    more = [replace(each, num_embeddings=each.num_embeddings + 30) for each in schema.sparse_features]
    shutil.copytree(folder / "log", folder / "larger")
    save_schema(replace(schema, sparse_features=tuple(more)), str(folder / "larger"))
    with join_process_group() as process:
        train(config_of(folder, "a", "log"), process)
        train(config_of(folder, "b", "log", seed=1), process)
        grown = replace(config_of(folder, "grown", "larger", seed=1), start_from=str(folder / "a"))
        train(replace(grown, start=StartConfig(new_rows="mean")), process)
        convert_run(ConvertConfig(str(folder / "a"), "packed", str(folder / "packed")), process)
    return folder


def config_of(folder: Path, name: str, log: str, *, seed: int = 0) -> TrainConfig:
    config = tiny()
    data = replace(config.data, path=str(folder / log), batch_size=64, eval_batch_size=256)
    return replace(config, data=data, seed=seed, output_dir=str(folder / name))


def inspected(tmp_path: Path, *runs: Path, **options: Any) -> dict[str, Any]:
    """What the file of numbers has of the runs."""
    file = tmp_path / "numbers.json"
    inspection = InspectOptions(tuple(map(str, runs)), json=str(file), **options)
    with nullcontext(ALONE) if inspection.tables_only else join_process_group() as process:
        inspect_runs(inspection, process)
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def numbers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return inspected(tmp_path_factory.mktemp("numbers"), folder / "a", folder / "b")


def tables_in(run: Path) -> dict[str, Tensor]:
    """The tables of a run in the split layout, by name."""
    whole = {name: torch.empty(*each.size) for name, each in saved_tensors(run / "best").items() if "bags" in name}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(whole, checkpoint_id=run / "best", no_dist=True)
    return {name.partition("embedding_bags.")[2].removesuffix(".weight"): table for name, table in whole.items()}


def test_metrics_and_gates_are_those_of_the_run_itself(folder: Path, numbers: dict[str, Any]) -> None:
    [of_run, _] = numbers["inspected_runs"]
    stored = json.loads((folder / "a/metrics.json").read_text())
    assert of_run["metrics"] == stored["valid"]
    lines = [each for each in read_metrics_log(folder / "a/metrics.jsonl") if "valid/like/auc" in each]
    [line] = [each for each in lines if each["step"] == stored["step"]]
    gates = {f"gate/{each['layer']}/{each['stream']}/{each['group']}": each for each in of_run["gates"]}
    assert {name: each["mean"] for name, each in gates.items()} == {
        name: pytest.approx(value) for name, value in line.items() if name.startswith("gate/")
    }
    for each in gates.values():
        # One expert for each of two tasks, and one shared.
        assert each["even"] == pytest.approx(1 / 3)
        assert each["p5"] <= each["p50"] <= each["p95"]
        assert abs(each["p50"] - each["mean"]) < 3 * each["deviation"] + 1 / 40


def test_rows_have_moved_if_their_ids_stand_in_the_training_rows(folder: Path, numbers: dict[str, Any]) -> None:
    [of_run, _] = numbers["inspected_runs"]
    rows = pq.read_table(folder / "log/train")
    ids = {each.name: rows[each.name] for each in load_schema(str(folder / "log")).sparse_features}
    seen = {name: set(np.concatenate([np.ravel(v) for v in c.to_pylist() if v is not None])) for name, c in ids.items()}
    assert {each["feature"]: each["seen"] for each in of_run["features"]} == {n: len(s) for n, s in seen.items()}
    # So the rows of all others have exactly the values that the seed draws.
    for table in of_run["tables"]:
        assert table["moved_of_seen"] == 1
        assert table["moved"] == pytest.approx(len(seen[table["feature"]]) / table["rows"])
    assert any(table["moved"] < 1 for table in of_run["tables"])


def test_table_facts_are_those_of_the_weights(folder: Path, numbers: dict[str, Any]) -> None:
    [of_run, _] = numbers["inspected_runs"]
    tables = tables_in(folder / "a")
    assert {f"{each['group']}/{each['feature']}" for each in of_run["tables"]} == set(tables)
    for each in of_run["tables"]:
        table = tables[f"{each['group']}/{each['feature']}"].double()
        norms = table.norm(dim=1)
        assert each["norms"] == pytest.approx(
            {"mean": norms.mean().item()}
            | {name: norms.quantile(q).item() for name, q in (("p10", 0.1), ("median", 0.5), ("p90", 0.9))}
        )
        values = torch.linalg.svdvals(table)
        assert each["abundance"] == pytest.approx((values.sum() / values.max()).item(), rel=1e-6)
    for each in of_run["similarity"]:
        pair = [tables[f"{each[name]}/{each['feature']}"] for name in ("group", "other")]
        assert each["similarity"] == pytest.approx(linear_cka(*pair))
    for group in (*TASKS, "shared"):
        assert sum(t["share_of_input"] for t in of_run["tables"] if t["group"] == group) == pytest.approx(1)


def test_a_packed_run_has_the_facts_of_the_split_one(folder: Path, numbers: dict[str, Any], tmp_path: Path) -> None:
    [packed] = inspected(tmp_path, folder / "packed")["inspected_runs"]
    [split, _] = numbers["inspected_runs"]
    assert {**packed, "run": "", "model": ""} == {**split, "run": "", "model": ""}


def test_two_runs_have_the_intervals_of_a_comparison(folder: Path, numbers: dict[str, Any], tmp_path: Path) -> None:
    runs = [Run(name, 0, folder_of_run) for name in ("a", "b") for folder_of_run in [tmp_path / name]]
    with join_process_group() as process:
        for run in runs:
            run.folder.mkdir()
            config = EvaluateConfig(str(folder / run.model), predictions=str(run.folder / PREDICTIONS))
            tested = {"parts": ["."], "metrics": to_json(evaluate_run(config, process)), "gates": {}}
            (run.folder / TEST_FILE).write_text(json.dumps(tested | {"samples_per_second": None}))
    scored = ScoredRows(Comparison(CompareConfig(split="valid"), config_of(folder, "a", "log"), runs, pair=None))
    assert len(numbers["differences"]) == len(TASKS) * 3
    for each in numbers["differences"]:
        resampled = scored.resample(each["task"], each["metric"], draws=1000)
        expected = resampled.difference("a", "b").numbers
        assert {name: each[name] for name in expected} == {
            name: None if math.isnan(value) else pytest.approx(value, abs=1e-12) for name, value in expected.items()
        }
        assert each["run"] == pytest.approx(resampled.whole["a"], abs=1e-12)
    assert any(each["low"] is not None for each in numbers["differences"])


def test_the_most_changed_ids_are_those_whose_rows_are_farthest(folder: Path, numbers: dict[str, Any]) -> None:
    a, b = tables_in(folder / "a"), tables_in(folder / "b")
    between = [each for each in numbers["changed_between"] if each["feature"] == "item_id"]
    squares = sum((a[f"{g}/item_id"] - b[f"{g}/item_id"]).double().square().sum(dim=1) for g in (*TASKS, "shared"))
    farthest = torch.as_tensor(squares).sqrt().topk(10)
    assert [each["id"] for each in between] == farthest.indices.tolist()
    assert [each["distance"] for each in between] == pytest.approx(farthest.values.tolist())
    for each in numbers["tables_of_both"]:
        name = f"{each['group']}/{each['feature']}"
        assert each["distance"] == pytest.approx(((a[name] - b[name]).norm() / b[name].norm()).item(), rel=1e-5)


def test_a_run_that_started_from_another_has_moved_since_then(
    folder: Path, numbers: dict[str, Any], tmp_path: Path
) -> None:
    started = shutil.copytree(folder / "a", tmp_path / "started", ignore=shutil.ignore_patterns("checkpoints"))
    parent = {"run": str(folder / "b"), "weights": str(folder / "b/best"), "step": 16, "log": None}
    begun = json.loads((started / "start.json").read_text())
    (started / "start.json").write_text(json.dumps(begun | {"parents": [parent]}))
    [of_run] = inspected(tmp_path, started, tables_only=True)["inspected_runs"]
    assert of_run["start"] == str(folder / "b/best")
    fields = ("feature", "id", "distance")
    assert [[each[name] for name in fields] for each in of_run["changed"]] == [
        [each[name] for name in fields] for each in numbers["changed_between"]
    ]
    for parents, start in (([], "the values that seed 0 draws"), ([parent | {"weights": "gone"}], "cannot be read")):
        (started / "start.json").write_text(json.dumps(begun | {"parents": parents}))
        [of_run] = inspected(tmp_path, started, tables_only=True)["inspected_runs"]
        assert start in of_run["start"]
        assert of_run["changed"] == numbers["inspected_runs"][0]["changed"]
    (started / "start.json").write_text("[]")
    with pytest.raises(DamagedError, match=r"start\.json is damaged"):
        inspected(tmp_path, started, tables_only=True)


def test_a_grown_run_is_compared_over_the_rows_that_both_have(folder: Path, tmp_path: Path) -> None:
    # Both read the log of b, which has no id that grown has no row for.
    numbers = inspected(tmp_path, folder / "grown", folder / "b")
    [grown, b] = numbers["inspected_runs"]
    assert b["rows"] == grown["rows"] == 700
    rows = {each["feature"]: each["rows"] for each in b["features"]}
    assert {each["feature"]: each["rows"] for each in numbers["tables_of_both"]} == rows
    [sentence] = numbers["only_one_has"]
    assert sentence.startswith("Rows in grown and b: user_id ")
    assert f", item_id {rows['item_id'] + 30:,} and {rows['item_id']:,}," in sentence
    # New rows began as the mean of the others, and no row of the log has their ids.
    for table in grown["tables"]:
        [seen] = [each["seen"] for each in grown["features"] if each["feature"] == table["feature"]]
        assert table["moved_of_seen"] == 1
        assert table["moved"] == pytest.approx(seen / table["rows"])
    of_grown, of_b = (RunRecord.read(folder / name, name) for name in ("grown", "b"))
    assert run_whose_log_both_read(of_b, of_grown) is of_b
    # Ids of a vocabulary that a run has no row for are read as unseen.
    assert of_grown.start is not None
    spaces = {name: replace(space, kind="vocabulary") for name, space in of_grown.start.ids.items()}
    with_vocabulary = replace(of_grown, start=replace(of_grown.start, ids=spaces))
    assert run_whose_log_both_read(with_vocabulary, of_b) is with_vocabulary
    other_task = replace(of_b.columns, labels=("finish", "share"))
    fewer = replace(of_b, schema=replace(of_b.schema, sparse_features=()))
    with pytest.raises(UserError, match=r"give one that both can read by --data\.path"):
        run_whose_log_both_read(of_grown, fewer)
    with pytest.raises(UserError, match="has all labels, features and ids"):
        run_whose_log_both_read(
            of_b, replace(of_b, schema=replace(of_b.schema, labels=("finish",)), columns=other_task)
        )


def test_rows_start_from_the_rows_that_they_continue_and_new_ones_from_that_of_unseen_values() -> None:
    old = torch.arange(6.0).view(3, 2)
    weight = torch.full((5, 3), 9.0)
    _continue(weight, old, IdMap(3, 5, torch.tensor([0, 2, -1, 1, -1])), "unseen")
    assert weight.tolist() == [[0, 1, 9], [4, 5, 9], [0, 1, 9], [2, 3, 9], [0, 1, 9]]


def test_only_the_first_rows_and_some_tasks_are_shown(folder: Path, tmp_path: Path) -> None:
    [of_run] = inspected(tmp_path, folder / "a", rows=100, tasks=("like",), top=0)["inspected_runs"]
    assert of_run["rows"] == of_run["metrics"]["like"]["rows"] == 100
    assert set(of_run["metrics"]) == {each["stream"] for each in of_run["gates"]} == {"like"}
    assert {each["group"] for each in of_run["tables"]} == {"like", "shared"}
    assert of_run["changed"] == []


def test_a_run_without_its_log_shows_its_tables(folder: Path, numbers: dict[str, Any], tmp_path: Path) -> None:
    moved = shutil.copytree(folder / "a", tmp_path / "moved", ignore=shutil.ignore_patterns("checkpoints"))
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace(str(folder / "log"), str(tmp_path / "no_log")))
    [of_run] = inspected(tmp_path, moved, tables_only=True)["inspected_runs"]
    assert "no_log/train any more" in of_run["ids"]
    assert [each["moved"] for each in of_run["tables"]] == [
        each["moved"] for each in numbers["inspected_runs"][0]["tables"]
    ]
    assert of_run["tables"][0]["moved_of_seen"] is None


def test_an_even_gate_has_a_row_for_each_run_where_their_experts_differ() -> None:
    def even(**shares: float) -> dict[str, GateFacts]:
        return {group: GateFacts("layers.0", "like", group, 0.1, share, None) for group, share in shares.items()}

    a, b = even(like=0.2, shared=0.8), even(like=0.1, share=0.1, shared=0.8)
    groups = ["like", "share", "shared"]
    assert even_rows({"a": a, "b": {}}, groups) == [{"gate": "even", "like": "0.200", "share": "-", "shared": "0.800"}]
    assert [row["gate"] for row in even_rows({"a": a, "b": a}, groups)] == ["even"]
    assert [row["gate"] for row in even_rows({"a": a, "b": b}, groups)] == ["even, a", "even, b"]


def test_rows_of_two_runs_that_tell_of_the_same_stand_together() -> None:
    rows = [{"feature": name, "run": run, "rows": "3"} for run in ("a", "b") for name in ("user", "item")]
    beside = [(row["feature"], row["run"]) for row in of_runs([*rows], 2).rows]
    assert beside == [("user", "a"), ("user", "b"), ("item", "a"), ("item", "b")]


def test_dead_tables_are_named_with_the_reason() -> None:
    torch.manual_seed(0)
    start = torch.randn(20, 4) * 1e-4
    counts = np.array([0] + [5] * 19)
    lively = start + torch.randn(20, 4)
    small, line = start + torch.randn(20, 4) * 1e-3, torch.outer(torch.randn(20), torch.randn(4))
    facts = [
        feature_facts(name, {"like": now}, {"like": start}, ids, top=1)
        for name, now, ids in (
            ("lively", lively, counts),
            ("untrained", start, counts),
            ("small", small, counts),
            ("line", line, counts),
            ("alone", lively, np.array([0, 95] + [0] * 18)),
        )
    ]
    assert [(feature, reason.replace("0.00%", "0%")) for feature, _, reason in dead_tables(facts)] == [
        ("untrained", "no row has moved since the start"),
        ("small", "0% of what the tables of like tell"),
        ("line", "all rows on one line"),
        ("alone", "one id in the training rows"),
    ]
    [table] = facts[0].tables.values()
    assert isinstance(table, TableFacts)
    weighted = torch.from_numpy(np.repeat(lively.double().numpy(), counts, axis=0))
    assert table.variance == pytest.approx(weighted.var(dim=0, correction=0).sum().item())


def test_ids_with_other_values_are_told_from_the_vocabularies(folder: Path, tmp_path: Path) -> None:
    records = []
    for name, colors in (("first", ["red"] * 3 + ["green"] * 2), ("second", ["green"] * 3 + ["red"] * 2)):
        rows = "".join(f"{color},{i % 3 % 2},{i % 7 % 2}\n" for i, color in enumerate(colors * 80))
        (tmp_path / f"{name}.csv").write_text(f"color,clicked,bought\n{rows}")
        log = tmp_path / name
        prepare_log(PrepareOptions(str(log) + ".csv", label=("clicked", "bought"), out=str(log), report=False))
        record = RunRecord.read(folder / "a", name)
        config = replace(record.config, data=replace(record.config.data, path=str(log)))
        columns, folder_of_run = Columns.select(load_schema(str(log))), tmp_path / f"run_{name}"
        assert record.start is not None
        start = replace(record.start, log=LogRecord(str(log), {}), ids=read_id_spaces(str(log), columns))
        records.append(replace(record, config=config, columns=columns, start=start, folder=folder_of_run))
    first, second = records
    assert other_value(first, second, "color") == "id 1 of 'color' is 'red', not 'green'"
    # Of a run of an earlier version the log tells it.
    assert other_value(replace(first, start=None), second, "color") == "id 1 of 'color' is 'red', not 'green'"
    again = replace(first, folder=tmp_path / "again")
    shutil.rmtree(tmp_path / "first")
    assert other_value(first, again, "color") == ""
    assert other_value(first, second, "color").startswith("the ids of 'color' in ")


BAD: dict[str, tuple[Sequence[str], dict[str, Any], str]] = {
    "no run": ([], {}, "no runs are given"),
    "three runs": (["a", "b", "packed"], {}, "3 runs are given"),
    "the same run twice": (["a", "a"], {}, "is given twice"),
    "no run folder": (["log"], {}, "log is no run folder"),
    "no weights": (["bare"], {}, "holds no weights"),
    "another task": (["a"], {"tasks": ("finis",)}, "--tasks finis is no task of .*; did you mean 'finish'"),
    "no split": (["a"], {"split": "test2"}, "test2 holds no .parquet file"),
    "no task in common": (["a", "other"], {}, "give two runs that share a task"),
    "tables alone of a log": (["a"], {"tables_only": True, "split": "test"}, "--tables-only predicts no rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_inspected_is_one_sentence(case: str, folder: Path) -> None:
    runs, options, sentence = BAD[case]
    if not (folder / "bare").exists():
        shutil.copytree(folder / "a", folder / "bare", ignore=shutil.ignore_patterns("best", "checkpoints"))
        other = shutil.copytree(folder / "bare", folder / "other")
        shutil.copytree(folder / "a/best", other / "best")
        for file in ("schema.json", "metrics.json"):
            text = (other / file).read_text()
            (other / file).write_text(text.replace('"finish"', '"watch"').replace('"like"', '"share"'))
    with pytest.raises(UserError, match=sentence):
        inspect_runs(InspectOptions(tuple(str(folder / run) for run in runs), **options), ALONE)


def test_files_of_others_are_not_replaced(folder: Path, tmp_path: Path) -> None:
    for option, content in (("json", "{}"), ("json", "not JSON"), ("out", "<html>")):
        (tmp_path / "file").write_text(content)
        options = InspectOptions((str(folder / "a"),), **{option: str(tmp_path / "file")})
        with pytest.raises(UserError, match=f"--{option} .* exists, and "):
            inspect_runs(options, ALONE)
        assert (tmp_path / "file").read_text() == content


def test_weights_that_a_training_replaces_meanwhile_are_noticed(folder: Path) -> None:
    record = RunRecord.read(folder / "a", "a")
    check_unchanged(record)
    assert record.best is not None
    with pytest.raises(UserError, match="got other weights meanwhile"):
        check_unchanged(replace(record, best=replace(record.best, step=1)))


@pytest.mark.long
@pytest.mark.parametrize("arch", [arch for arch in MODELS if arch != "stem"])
def test_every_model_lies_beside_a_stem_of_two_layers(arch: str, folder: Path, tmp_path: Path) -> None:
    deep = replace(config_of(folder, "deep", "log"), model=STEMOptions(embedding_dim=8, num_layers=2))
    other = replace(config_of(folder, arch, "log", seed=1), model=MODELS[arch].options(embedding_dim=8))
    with join_process_group() as process:
        if not (folder / "deep").exists():
            train(deep, process)
        train(other, process)
    numbers = inspected(tmp_path, folder / "deep", folder / arch)
    [stem, of_arch] = numbers["inspected_runs"]
    streams = {(each["layer"], each["stream"]) for each in stem["gates"]}
    assert streams == {("layers.0", "finish"), ("layers.0", "like"), ("layers.0", "shared")} | {
        ("layers.1", "finish"), ("layers.1", "like")
    }  # fmt: skip
    assert bool(of_arch["gates"]) == (arch in ("omoe", "mmoe", "ple", "me_mmoe", "me_ple", "duet"))
    groups = {each["group"] for each in of_arch["tables"]}
    assert groups == set(MODELS[arch].groups(TASKS))
    assert {each["group"] for each in numbers["tables_of_both"]} == groups
    assert len(numbers["differences"]) == 6
    assert f"deep is a model stem and {arch} a model {arch}" in numbers["only_one_has"][0]


@pytest.mark.long
def test_the_page_of_two_runs_works_in_a_browser(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "inside.html"
    with pytest.MonkeyPatch.context() as patch:
        line = [str(folder / "a"), str(folder / "b"), "--out", str(file)]
        patch.setattr(sys, "argv", ["inspect_run.py", *line])
        inspect_run.main()
    assert file.stat().st_size < 400_000
    with chromium() as browser:
        # A chart for the gate of each of two tasks.
        check_page(browser, file, charts=2)


def test_the_text_says_what_the_page_says(folder: Path) -> None:
    sections = inspect_runs(InspectOptions((str(folder / "a"),), tables_only=True), ALONE)
    text = as_text(sections)
    assert "No rows are predicted." in text
    assert [section.title for section in sections] == ["Runs", "Tables", "Similarity of groups", "Most-changed ids"]
