"""Tasks whose labels are numbers or levels: data, losses and runs beside those of binary tasks."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.calibration.rows_of_run import rows_of_run
from stem_torchrec.config import LossConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.label_statistics import log_odds_above, mean_and_deviation
from stem_torchrec.data.schema import Label, load_schema, save_schema, schema_to_dict
from stem_torchrec.inspection.inspect_runs import inspect_runs
from stem_torchrec.inspection.options import InspectOptions
from stem_torchrec.losses.table import losses_of_tasks
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.models.build import build_model
from stem_torchrec.models.links import Link, NumberLink, OrdinalLink
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.outputs import Outputs
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.runtime.process import Process
from stem_torchrec.server.served_bundle import ServedBundle, breaking_changes
from stem_torchrec.serving.bundle import load_bundle
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.score_file import ScoreConfig, score_file
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import Trainer

from distributed import run_ranks
from logs import reader_of, write_split
from mixed_logs import LEVELS, SCHEMA, TASKS, config_for, mixed_table, write_mixed_log
from prepared_logs import in_time, prepared, raw_rows, split
from reference import COLUMNS, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, this_process, with_labels_of
from served import running_server

ALONE = Process(0, 1, 1, torch.device("cpu"))
KINDS = replace(COLUMNS, labels=("finish", "like", "watch"), numbers=("watch",), levels={"like": 3})
"""A binary task, one of three levels, and a number."""
STATISTICS = {"like": (1.0, -0.5), "watch": (0.5, 2.0)}


class GivenLogits(torch.nn.Module):
    """A model whose logits are the dense features, of one task that is not binary."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link
        self.outputs = Outputs(("a",), links={"a": link})

    def forward(self, dense: Tensor, sparse: object) -> Tensor:
        return dense


def logistic(x: float) -> float:
    return math.log1p(math.exp(-x))


def of_row(kind: str, z: float, y: float) -> float:
    """The equation of a loss of a row, of a label with the mean .5 and the deviation 2, or thresholds 1 and -.5."""
    error = z - (y - 0.5) / 2
    match kind:
        case "mse":
            return error**2 / 2
        case "huber":
            return error**2 / 2 if abs(error) <= 0.7 else 0.7 * (abs(error) - 0.35)
        case _:
            return sum(logistic(z + b if y > k else -z - b) for k, b in enumerate((1.0, -0.5)))


@pytest.mark.parametrize(("kind", "labels"), [("mse", "number"), ("huber", "number"), ("coral", "ordinal")])
def test_each_loss_is_its_equation(kind: str, labels: str) -> None:
    random = torch.Generator().manual_seed(0)
    batch = random_batch(0, replace(COLUMNS, labels=("a",)), rows=40)
    z = torch.randn(40, 1, generator=random) * 2
    y = torch.randint(3, (40, 1), generator=random).float() * (1 if labels == "ordinal" else 2.3)
    y[::7] = math.nan
    link = NumberLink() if labels == "number" else OrdinalLink(3)
    link.start(STATISTICS["watch" if labels == "number" else "like"])
    config = LossConfig(kinds={"a": kind}, huber_delta=0.7)
    train = MultiTaskTrain(GivenLogits(link), losses=losses_of_tasks(config, ("a",), {"a": labels}))
    loss, (_, scores) = train(replace(batch, dense_features=z, labels=y))
    known = [i for i in range(40) if i % 7]
    expected = sum(of_row(kind, float(z[i]), float(y[i])) for i in known) / len(known)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    sigmoids = (1 / (1 + torch.exp(-z - b)) for b in (1.0, -0.5))
    torch.testing.assert_close(scores, 0.5 + 2 * z if labels == "number" else sum(sigmoids))


def train_and_isolate() -> tuple[dict[str, Tensor], dict[str, set[str]]]:
    """The weights after three steps, and by task the dense weights that a further step on its labels alone changed."""
    config = config_of("adagrad", "table_wise", model=replace(MODEL, num_layers=1))
    run = Run.build(config, KINDS)
    batches = [
        replace(batch, labels=torch.stack([labels[:, 0], labels[:, 0] + labels[:, 1], 9 * labels[:, 1]], dim=1))
        for batch in of_this_rank(batches_of_ranks(6, dist.get_world_size(), missing=0.3))
        for labels in [batch.labels]
    ]
    run.train(batches[:3])
    weights, changed = run.weights(), {}
    for i, task in enumerate(KINDS.labels):
        before = run.weights()
        run.train(with_labels_of(i, batches[3 + i : 4 + i], KINDS))
        changed[task] = {name for name, weight in run.weights().items() if not torch.equal(weight, before[name])}
    return weights, changed


def test_two_ranks_train_what_one_does_and_a_step_of_a_task_changes_no_other_task_to_the_bit() -> None:
    [(alone, _)], two = run_ranks(1, train_and_isolate), run_ranks(2, train_and_isolate)
    for weights, changed in two:
        for name, weight in weights.items():
            # Sums of another order in fp32, over three steps of Adam.
            torch.testing.assert_close(weight, alone[name], rtol=1e-3, atol=1e-5, msg=name)
        for task, names in changed.items():
            assert any(f"towers.{task}." in name for name in names)
            assert not [n for n in names if any(other in n for other in KINDS.labels if other != task)], task
        assert "links.like.thresholds" in changed["like"]
    trained = tasks_of_parameters(build_model(MODEL, KINDS), tasks=3, dense_in_features=2)
    assert trained["model.links.like.thresholds"] == {1}
    assert {"links.watch.offset", "links.watch.scale"} <= alone.keys()


def use_everything(folder: Path) -> dict[str, Any]:
    """A run, evaluated and exported; the same run in two parts; and one on another log that starts from it."""
    process = this_process()
    metrics = Trainer(config_for(folder), process).run()
    evaluation = EvaluateConfig(str(folder / "run"), predictions=str(folder / "predictions"))
    assert to_json(evaluate_run(evaluation, process)) == to_json(metrics)
    export_run(ExportConfig(str(folder / "run"), str(folder / "bundle")))
    part = Trainer(config_for(folder, run="parts"), process)
    for _ in range(20):
        part.train_step()
    part.save()
    part.close()
    resumed = Trainer(config_for(folder, run="parts"), process).run()
    other = replace(config_for(folder, log="other", run="next"), start_from=str(folder / "run"))
    following = Trainer(other, process)
    links = {name: value.tolist() for name, value in following.model.state_dict().items() if "links.watch" in name}
    following.close()
    return {"metrics": to_json(metrics), "resumed": to_json(resumed), "links": links}


def check_served(bundle: Path, rows: pa.Table, scores: pa.Table) -> None:
    """A server and stem-score predict what the bundle does, in the units of the labels, and the server tells which."""
    features = rows.select(["user", "item"])
    file, scored = bundle.with_name("rows.parquet"), bundle.with_name("scored.parquet")
    pq.write_table(features, file)
    score_file(ScoreConfig(str(bundle), input=str(file), output=str(scored)))
    assert pq.read_table(scored).equals(scores)
    with running_server(bundle, token=None) as server:
        answer = server.ask("/score", {"rows": features.to_pylist()}, token=None).json
        schemas = server.ask("/openapi.json", token=None).json["components"]["schemas"]
    predictions = pa.Table.from_pylist(answer["predictions"])
    for task in TASKS:
        np.testing.assert_allclose(predictions[task], scores[task], rtol=1e-5)
    told = {task: each["description"] for task, each in schemas["Prediction"]["properties"].items()}
    assert told == {
        "like": "The probability that the label is 1.",
        "watch": "The number that the label is expected to be, in its unit.",
        "stars": "The level that the label is expected to have, from 0.",
    }
    assert schemas["ScoreAnswer"]["properties"]["predictions"]["items"]["anyOf"][0]["$ref"].endswith("/Prediction")


def test_a_mixed_log_goes_through_train_evaluate_resume_start_export_score_and_serve(tmp_path: Path) -> None:
    write_mixed_log(tmp_path / "log")
    write_mixed_log(tmp_path / "other", seconds=1000.0)
    [facts] = run_ranks(1, use_everything, tmp_path)
    metrics, labels = facts["metrics"], mixed_table(300, seed=1)
    # By chance .5, and the deviation of the labels, about 50 seconds and 1 level; noise alone is 15 seconds.
    assert min(each["auc"] for each in metrics.values()) > 0.8
    assert metrics["watch"]["rmse"] < 25
    assert metrics["stars"]["mae"] < 0.5
    assert abs(metrics["watch"]["pcoc"] - 1) < 0.05
    assert facts["resumed"] == metrics
    known = mixed_table(800)["watch_time"].drop_null().to_numpy().astype(np.float32)
    assert facts["links"] == pytest.approx(
        {"model.links.watch.offset": known.mean(), "model.links.watch.scale": known.std()}, rel=1e-5
    )
    predicted, bundle = pq.read_table(tmp_path / "predictions"), load_bundle(tmp_path / "bundle")
    scores = bundle.score(labels)
    for task in TASKS:
        # FBGEMM and torch add up a bag in another order.
        np.testing.assert_allclose(scores[task], predicted[f"prediction/{task}"], rtol=3e-6)
    assert json.loads((tmp_path / "bundle/manifest.json").read_text())["kinds"] == {
        "watch": "number",
        "stars": "ordinal",
    }
    check_served(tmp_path / "bundle", labels, scores)
    as_binary = replace(bundle, manifest=replace(bundle.manifest, kinds={"stars": "ordinal"}))
    changes = breaking_changes(ServedBundle(bundle, "a"), ServedBundle(as_binary, "b"))
    assert changes == ["it predicts watch as binary"]
    error = predicted["prediction/watch"].to_numpy() - labels["watch_time"].to_numpy()
    assert math.sqrt(np.nanmean(error**2)) == pytest.approx(metrics["watch"]["rmse"], rel=1e-6)
    two = InspectOptions((str(tmp_path / "run"), str(tmp_path / "parts")), tables_only=True)
    assert "Tables of run beside those of parts" in [section.title for section in inspect_runs(two, ALONE)]
    rows = rows_of_run(str(tmp_path / "run"), log=None, judge_on=None)
    assert rows.not_binary == ("watch", "stars")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "watch_time",
            math.inf,
            "row 2, column 'watch_time': inf is not a label as a number, a finite 32-bit float; w",
        ),
        ("stars", 4, "row 2, column 'stars': 4 is not a level from 0 to 3, as schema.json has 4 levels, or null."),
        ("stars", -1, "row 2, column 'stars': -1 is not a level from 0 to 3, as schema.json has 4 levels, or null."),
        ("stars", 1.5, "row 2, column 'stars': 1.5 is not a level from 0 to 3, as schema.json has 4 levels, or null."),
        ("like", 2, "row 2, column 'like': 2 is not 0, 1 or null."),
    ],
)
def test_a_label_that_is_none_of_its_kind_is_named_with_its_place(
    tmp_path: Path, column: str, value: float, message: str
) -> None:
    table = mixed_table(9)
    values = table[column].to_pylist()
    values[2] = value
    write_split(tmp_path, table.set_column(table.schema.names.index(column), column, pa.array(values)))
    with pytest.raises(DataError) as error:
        list(reader_of(tmp_path, SCHEMA, batch_size=9))
    assert message in str(error.value)


def test_a_missing_label_is_missing_and_statistics_are_of_all_files(tmp_path: Path) -> None:
    table = mixed_table(50, missing=0.3)
    watch = [math.nan if i % 5 == 0 else each for i, each in enumerate(table["watch_time"].to_pylist())]
    table = table.set_column(3, "watch_time", pa.array(watch, pa.float64()))
    write_split(tmp_path, table, [[20, 1], [29]])
    columns = Columns.select(SCHEMA)
    [batch] = reader_of(tmp_path, SCHEMA, batch_size=50, shuffle_rows=0)
    known = batch.labels[~batch.labels[:, 1].isnan(), 1].double()
    assert len(known) == sum(each is not None and each == each for each in watch)
    row_groups = find_row_groups(str(tmp_path), "train", SCHEMA, columns)
    expected = known.mean().item(), known.std(correction=0).item()
    assert mean_and_deviation(row_groups, columns, "watch") == pytest.approx(expected, rel=1e-12)
    levels = batch.labels[~batch.labels[:, 2].isnan(), 2]
    odds = [((levels > k).sum() + 0.5).item() / ((levels <= k).sum() + 0.5).item() for k in range(LEVELS - 1)]
    assert log_odds_above(row_groups, columns, "stars") == pytest.approx([math.log(each) for each in odds])


@pytest.mark.parametrize(("kind", "levels"), [("ordinal", None), ("number", 3), ("binary", 2)])
def test_levels_are_those_of_an_ordinal_label(tmp_path: Path, kind: Any, levels: int | None) -> None:
    save_schema(replace(SCHEMA, labels=(Label("stars", kind=kind, levels=levels),)), str(tmp_path))
    with pytest.raises(UserError, match=f"the label 'stars' is {kind}; .* levels, the number of an ordinal one's"):
        load_schema(str(tmp_path))
    assert schema_to_dict(SCHEMA)["labels"][0] == "like"


SPEC_LABELS = {
    "click": "click",
    "watch": {"value": "price * 2", "kind": "number", "where": "click = 1"},
    "stars": {"value": "time % 5", "kind": "ordinal", "levels": 5},
}


def test_a_spec_names_the_kinds_of_its_labels(tmp_path: Path) -> None:
    rows = raw_rows()
    log = prepared(tmp_path, rows, labels=SPEC_LABELS)
    schema = load_schema(str(log))
    assert set(schema.labels) == {"click", Label("watch", kind="number"), Label("stars", kind="ordinal", levels=5)}
    train = split(log, "train")
    clicks = in_time(rows, "click")[:300]
    assert [watch is not None for watch in train["watch"]] == [click == 1 for click in clicks]
    watched = [2 * price for price, click in zip(in_time(rows, "price"), clicks, strict=False) if click]
    assert [watch for watch in train["watch"] if watch is not None] == pytest.approx(watched, rel=1e-6)
    assert train["stars"] == [time % 5 for time in range(300)]
    counts = schema.splits["train"].labels
    assert (counts["watch"].positives, counts["watch"].missing) == (sum(clicks), 300 - sum(clicks))
    assert counts["stars"].positives == 240
    assert "positive above 0, in all sections" in (log / "report.md").read_text()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            {"value": "time % 5", "kind": "ordinal", "levels": 4},
            "4 in 80 rows, but must be a level from 0 to 3 or miss",
        ),
        ({"value": "price * 1e39", "kind": "number"}, "but must be a finite 32-bit float or missing"),
        ({"value": "click", "kind": "number", "levels": 2}, r"labels\[stars\] is number; leave out levels"),
    ],
)
def test_a_spec_whose_labels_are_not_of_their_kind_is_refused(
    tmp_path: Path, label: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, raw_rows(), labels={"stars": label})
