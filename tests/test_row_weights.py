"""Weights of rows and labels: read and checked, in the loss of all ranks, in exact metrics and in predictions."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch

from stem_torchrec.checkpoints.compatibility import check_same_run
from stem_torchrec.config import (
    DataConfig,
    DenseOptimizerConfig,
    LoopConfig,
    ShardingConfig,
    SparseOptimizerConfig,
    TrainConfig,
)
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.label_counts import LabelCounter, WeightedBatch, labels_of_step, weights_of
from stem_torchrec.data.label_kinds import label_kinds, may_lack_labels
from stem_torchrec.data.loader import data_loader
from stem_torchrec.data.schema import load_schema, save_schema, schema_to_dict
from stem_torchrec.metrics.multi_task import MultiTaskMetrics, TaskMetrics
from stem_torchrec.models.loss import multi_task_loss
from stem_torchrec.runtime.errors import DataError, UserError
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run
from stem_torchrec.training.trainer import Trainer

from distributed import run_ranks
from logs import SCHEMA, log_table, reader_of, write_split
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, config_of, this_process

STORED_LOG = Path(__file__).parent / "data/log"
BOTH = replace(SCHEMA, weight="w", label_weights={"like": "lw"})


def weighted_rows(rows: int, **columns: pa.Array) -> pa.Table:
    """`log_table` with the weights w = n % 3 of rows and lw = n / 2 of `like`."""
    given = {"w": pa.array([n % 3 for n in range(rows)]), "lw": pa.array([n / 2 for n in range(rows)]), **columns}
    table = log_table(rows)
    for name, column in given.items():
        table = table.append_column(name, column)
    return table


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_product_of_the_weights_of_its_rows_and_labels(tmp_path: Path, workers: int) -> None:
    write_split(tmp_path, weighted_rows(12), [[5], [7]])
    expected = [[n % 3, n % 3 * n / 2] for n in range(12)]
    reader = reader_of(tmp_path, BOTH, batch_size=5, training=False, num_workers=workers)
    batches = [item.batch for item in data_loader(reader)]
    assert [type(batch) for batch in batches] == [WeightedBatch] * 3
    assert torch.cat([batch.weights for batch in batches]).tolist() == expected
    for schema, values in ((replace(BOTH, weight=None), [1, 3.5]), (replace(BOTH, label_weights={}), [1, 1])):
        (batch,) = reader_of(tmp_path, schema, batch_size=12, shuffle_rows=0)
        assert batch.weights[7].tolist() == values
    # Padding weighs nothing.
    padded = next(iter(reader_of(tmp_path, BOTH, batch_size=99, rank=0, world_size=5)))
    assert padded.labels[-1].isnan().all()
    assert padded.weights[-1].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("weights", "shown"),
    [
        ([1.0, None, 1.0], "null"),
        ([1.0, -0.5, 1.0], "-0.5"),
        ([1.0, math.nan, 1.0], "nan"),
        ([1.0, 1e300, 1.0], "1e+300"),
    ],
)
def test_a_wrong_weight_is_named_with_its_place_and_its_row_can_be_skipped(
    tmp_path: Path, weights: list[Any], shown: str
) -> None:
    write_split(tmp_path, weighted_rows(3, w=pa.array(weights)))
    with pytest.raises(DataError) as error:
        list(reader_of(tmp_path, BOTH, batch_size=3))
    assert str(error.value) == (
        f"{tmp_path}/train/part-0.parquet, row group 0, row 1, column 'w': {shown} is not a weight from 0 on: a finite "
        "32-bit float."
    )
    (batch,) = reader_of(tmp_path, BOTH, batch_size=3, shuffle_rows=0, max_bad_share=0.4)
    assert batch.weights[1].tolist() == [0, 0]


def test_weights_of_rows_are_numbers(tmp_path: Path) -> None:
    write_split(tmp_path, weighted_rows(3, w=pa.array(["1"] * 3)))
    with pytest.raises(UserError) as error:
        reader_of(tmp_path, BOTH, batch_size=3)
    assert str(error.value) == (
        f"column 'w' is string in {tmp_path}/train/part-0.parquet; weights of rows need numbers. datasets/README.md "
        "shows the schema."
    )


def test_a_weight_of_0_counts_as_a_missing_label_wherever_that_is_asked(tmp_path: Path) -> None:
    facts = []
    for i, least in enumerate((0.0, 0.5)):
        weights = pa.array([least if n % 3 == 1 else 1.0 for n in range(12)])
        for statistics in (True, False):
            write_split(tmp_path / f"{i}{statistics}", weighted_rows(12, lw=weights), write_statistics=statistics)
            schema = replace(SCHEMA, labels=("finish", "like"), label_weights={"finish": "lw"})
            columns = Columns.select(schema, labels=("finish",))
            row_groups = find_row_groups(str(tmp_path / f"{i}{statistics}"), "train", schema, columns)
            facts.append((may_lack_labels(row_groups, columns) if statistics else None, least > 0))
            assert label_kinds(row_groups, columns, "finish") == {0, 1}
    assert facts == [(True, False), (None, False), (False, True), (None, True)]
    # like is 1 where n % 3 == 1: without those, no order of rows is better than another.
    weights = pa.array([0 if n % 3 == 1 else 1 for n in range(12)])
    write_split(tmp_path / "likes", weighted_rows(12, lw=weights))
    columns = Columns.select(replace(SCHEMA, label_weights={"like": "lw"}))
    row_groups = find_row_groups(str(tmp_path / "likes"), "train", SCHEMA, columns)
    assert label_kinds(row_groups, columns, "like") == {0}


def test_the_loss_is_the_weighted_mean_and_without_weights_the_same_bits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(9, 2), torch.randint(2, (9, 2)).float()
    labels[3, 1] = torch.nan
    weights = torch.rand(9, 2)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    known = weights * ~labels.isnan()
    expected = (losses * known).sum(dim=0) / known.sum(dim=0)
    assert torch.equal(multi_task_loss(logits, labels, weights=weights), expected)
    ones = multi_task_loss(logits, labels, weights=torch.ones(9, 2))
    assert torch.equal(ones, multi_task_loss(logits, labels))
    assert multi_task_loss(logits, labels, weights=torch.zeros(9, 2)).tolist() == [0, 0]


def with_weights(batch: Batch, weights: Tensor) -> WeightedBatch:
    return WeightedBatch(batch.dense_features, batch.sparse_features, batch.labels, weights)


def part_of_batch(step: int, rank: int, ranks: int) -> WeightedBatch:
    """A rank's part of 12 rows, with other sums of weights on each rank."""
    part = slice(12 // ranks * rank, 12 // ranks * (rank + 1))
    weights = torch.rand(12, 2, generator=torch.Generator().manual_seed(step))
    weights[:6] *= 10
    weights[4] = 0
    return with_weights(random_batch(step, rows=12, missing=0.3, part=part), weights[part])


def train_weighted() -> tuple[list[Tensor], dict[str, Tensor], list[list[float]]]:
    """The losses of three steps, the tables after them and the sums of the weights."""
    config = config_of("sgd", "row_wise", learning_rate=5.0)
    run = Run.build(dataclasses.replace(config, dense=DenseOptimizerConfig(learning_rate=0.0)))
    batches = [part_of_batch(step, dist.get_rank(), dist.get_world_size()) for step in range(3)]
    counted = list(LabelCounter().counted(batches))
    sums = [(labels_of_step(batch) * dist.get_world_size()).tolist() for batch in counted]
    outputs = [run.pipeline.progress(iterator) for iterator in [iter(counted)] for _ in counted]
    return [losses for losses, _ in outputs], {n: w for n, w in run.weights().items() if TABLES in n}, sums


def test_two_ranks_train_on_weights_as_one_process_does() -> None:
    [(losses, tables, sums)], together = run_ranks(1, train_weighted), run_ranks(2, train_weighted)
    rounding = {"rtol": 1e-5, "atol": 1e-6}  # The same sums of float32 in another order.
    for step in range(3):
        torch.testing.assert_close(sum(rank[0][step] for rank in together) / 2, losses[step], **rounding)
    for _, of_rank, sums_of_rank in together:
        torch.testing.assert_close(of_rank, tables, **rounding)
        assert np.allclose(sums_of_rank, sums, rtol=1e-12)


def train_bits(*kinds: str) -> list[dict[str, list[Tensor]]]:
    """What steps on rows that have no weight, or no label, make of every weight and state."""
    outcomes = []
    for kind in kinds:
        run = Run.build(config_of("adagrad", "row_wise"))
        ranks, rank = dist.get_world_size(), dist.get_rank()
        run.train([part_of_batch(step, rank, ranks) for step in range(2)])
        if kind == "no step":
            outcomes.append(run.table_bits() | run.dense_bits())
            continue
        steps: Iterable[WeightedBatch] = [part_of_batch(step, rank, ranks) for step in (2, 3)]
        for batch in steps:
            weights = batch.weights
            if kind == "zero":
                batch.weights[:, 1] = 0
                batch.weights[::2, 0] = 0
            elif kind == "missing":
                batch.labels[:, 1] = torch.nan
                batch.labels[::2, 0] = torch.nan
            assert weights is batch.weights
            run.train([batch])
        outcomes.append(run.table_bits() | run.dense_bits())
    return outcomes


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_label_that_weighs_0_trains_nothing_to_the_bit_of_its_task(ranks: int) -> None:
    for zero, missing, before in run_ranks(ranks, train_bits, "zero", "missing", "no step"):
        for name, bits in zero.items():
            assert all(map(torch.equal, bits, missing[name])), name
            if "like" in name:
                assert all(map(torch.equal, bits, before[name])), name
        assert any(not all(map(torch.equal, zero[name], before[name])) for name in zero)


def rows_to_measure(rows: int = 600, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits with ties, labels with missing ones, groups and weights, of which some are 0."""
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, 2, generator=random) * 8).round() / 8
    labels = (torch.rand(rows, 2, generator=random) < logits.sigmoid()).float()
    labels[torch.rand(rows, 2, generator=random) < 0.2] = torch.nan
    weights = torch.rand(rows, 2, generator=random) * 3
    weights[torch.rand(rows, 2, generator=random) < 0.1] = 0
    return logits, labels, torch.randint(40, (rows,), generator=random), weights


def measure(*columns: Tensor, parts: int = 3, rows_in_memory: int = 10**6) -> dict[str, TaskMetrics]:
    """The metrics of this rank's rows and those of the others."""
    metrics = MultiTaskMetrics(["a", "b"], weighted=len(columns) > 3, rows_in_memory=rows_in_memory)
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for batch in zip(*(column[rank::ranks].tensor_split(parts) for column in columns), strict=True):
        metrics.update(*batch)
    return metrics.compute()


def test_weighted_metrics_are_those_of_sklearn() -> None:
    logits, labels, groups, weights = rows_to_measure()
    for i, result in enumerate(measure(logits, labels, groups, weights).values()):
        known = ~labels[:, i].isnan() & (weights[:, i] > 0)
        x, y, w, user = (each[known].double().numpy() for each in (logits[:, i], labels[:, i], weights[:, i], groups))
        p = 1 / (1 + np.exp(-x))
        loss, rate = sklearn.metrics.log_loss(y, p, sample_weight=w), np.average(y, weights=w)
        entropy = -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)
        total = mass = rows = both = 0
        for each in np.unique(user):
            of = user == each
            if 0 < y[of].sum() < of.sum():
                total += w[of].sum() * sklearn.metrics.roc_auc_score(y[of], x[of], sample_weight=w[of])
                mass, rows, both = mass + w[of].sum(), rows + of.sum(), both + 1
        auc = sklearn.metrics.roc_auc_score(y, x, sample_weight=w)
        expected = (auc, total / mass, loss, loss / entropy, (w @ p) / (w @ y), len(y), y.sum(), both, rows)
        assert astuple(result)[:9] == pytest.approx(expected, abs=1e-9)  # Rounding of sums in float64.


def test_equal_weights_change_no_metric() -> None:
    logits, labels, groups, _ = rows_to_measure()
    expected = measure(logits, labels, groups)
    for weight in (1.0, 4.0):
        weighted = measure(logits, labels, groups, torch.full_like(labels, weight))
        for task, result in weighted.items():
            # Sums and products of whole numbers are exact.
            assert (result.auc, astuple(result)[5:]) == (expected[task].auc, astuple(expected[task])[5:])
            assert astuple(result) == pytest.approx(astuple(expected[task]), abs=1e-12)


def measure_on_ranks(rows_in_memory: int) -> dict[str, TaskMetrics]:
    return measure(*rows_to_measure(), rows_in_memory=rows_in_memory)


def test_ranks_in_memory_or_on_disk_measure_what_one_does() -> None:
    alone = measure(*rows_to_measure())
    for ranks, rows in ((1, 64), (2, 10**6), (2, 64)):
        results = run_ranks(ranks, measure_on_ranks, rows)
        for task, expected in alone.items():
            assert len({astuple(result[task]) for result in results}) == 1
            # Sums of weights in float64, in another order.
            assert astuple(results[0][task]) == pytest.approx(astuple(expected), abs=1e-12)


def test_weights_without_a_task_that_expects_them_are_named() -> None:
    logits, labels, groups, weights = rows_to_measure(4)
    with pytest.raises(ValueError, match=r"weights are \(4, 2\), but need none, or MultiTaskMetrics"):
        MultiTaskMetrics(["a", "b"]).update(logits, labels, groups, weights)
    with pytest.raises(ValueError, match=r"weights are None, but need shape \(4, 2\)"):
        MultiTaskMetrics(["a", "b"], weighted=True).update(logits, labels, groups)


def make_log(folder: Path) -> None:
    """The stored log with weights of rows from 1 to 3, and of `like` from 0 to 2."""
    shutil.copytree(STORED_LOG, folder)
    schema = replace(load_schema(str(folder)), weight="w", label_weights={"like": "lw"})
    save_schema(replace(schema, splits={}), str(folder))
    for file in folder.glob("*/*.parquet"):
        table = pq.read_table(file)
        rows = np.arange(len(table))
        table = table.append_column("w", pa.array(1 + rows % 3))
        pq.write_table(table.append_column("lw", pa.array((rows % 5) / 2)), file)


def run_on(log: Path, out: Path) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(path=str(log), batch_size=16, eval_batch_size=16),
        model=MODEL,
        sparse=SparseOptimizerConfig("adagrad", 0.1),
        train=LoopConfig(epochs=2, eval_every=5),
        output_dir=str(out),
    )


def train_and_evaluate(folder: Path) -> tuple[dict[str, TaskMetrics], dict[str, TaskMetrics]]:
    best = Trainer(run_on(folder / "log", folder / "run"), this_process()).run()
    config = EvaluateConfig(run=str(folder / "run"), predictions=str(folder / "predictions"))
    return best, evaluate_run(config, this_process())


def test_a_run_learns_and_is_judged_by_the_weights_of_its_log(tmp_path: Path) -> None:
    make_log(tmp_path / "log")
    results = run_ranks(2, train_and_evaluate, tmp_path)
    rows = pq.read_table(tmp_path / "predictions").sort_by("row")
    for best, evaluated in results:
        assert best == evaluated
    for task, result in results[0][1].items():
        w, y, p = (rows[f"{kind}/{task}"].to_numpy() for kind in ("weight", "label", "prediction"))
        numbers = np.arange(len(rows))
        assert w.tolist() == ((1 + numbers % 3) * (numbers % 5 / 2 if task == "like" else 1)).tolist()
        assert result.auc == pytest.approx(sklearn.metrics.roc_auc_score(y, p, sample_weight=w), abs=1e-9)
        assert result.rows == (w > 0).sum()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert any("train/loss/like" in line for line in lines)


def resume(folder: Path, steps: int) -> dict[str, list[Tensor]]:
    """Every weight and state after 20 steps, of which the first ones are made by a run that ends then."""
    config = run_on(folder / "log", folder / f"run-{steps}")
    if steps:
        trainer = Trainer(config, this_process())
        for _ in range(steps):
            trainer.train_step()
        trainer.save()
        trainer.close()
    trainer = Trainer(config, this_process())
    for _ in range(11 - steps):
        trainer.train_step()
    run = Run(config, COLUMNS, trainer.model, trainer.optimizer, trainer.pipeline, None)  # type: ignore[arg-type]
    bits = run.dense_bits()
    trainer.close()
    return bits


@pytest.mark.long
def test_a_run_with_weights_resumes_to_the_same_bits(tmp_path: Path) -> None:
    make_log(tmp_path / "log")
    for whole, resumed in zip(run_ranks(2, resume, tmp_path, 0), run_ranks(2, resume, tmp_path, 4), strict=True):
        for name, bits in whole.items():
            assert all(map(torch.equal, bits, resumed[name])), name


def test_moments_of_tables_are_refused_where_a_label_may_weigh_0(tmp_path: Path) -> None:
    make_log(tmp_path / "log")
    moments, dense = SparseOptimizerConfig("adam", 0.1), ShardingConfig(kernel="dense")
    config = replace(run_on(tmp_path / "log", tmp_path / "run"), sparse=moments, sharding=dense)
    assert run_ranks(1, message_of_training, config) == [
        "labels are missing in this log, and the moments of adam would change a task's table rows without its label; "
        "choose sgd, adagrad or rowwise_adagrad without decay, or allow it with --sparse.update-unlabeled-rows."
    ]


def message_of_training(config: TrainConfig) -> str:
    with pytest.raises(UserError) as error:
        Trainer(config, this_process())
    return str(error.value)


def test_a_log_with_weights_is_evaluated_by_them_though_the_run_had_none(tmp_path: Path) -> None:
    make_log(tmp_path / "log")
    run = str(Path(__file__).parent / "data/run_format_1")
    (result,) = run_ranks(1, evaluate_split, run, tmp_path / "log")
    (plain,) = run_ranks(1, evaluate_split, run, STORED_LOG)
    assert (result["like"].auc, plain["like"].rows) != (plain["like"].auc, result["like"].rows)
    assert weights_of(random_batch(0, rows=2)) is None


def evaluate_split(run: str, log: Path) -> dict[str, TaskMetrics]:
    return evaluate_run(EvaluateConfig(run=run, data=EvaluationData(str(log)), split="valid"), this_process())


def test_a_run_does_not_resume_on_other_weights() -> None:
    plain = schema_to_dict(SCHEMA)
    check_same_run("run", ({}, plain), ({}, plain))
    with pytest.raises(UserError) as error:
        check_same_run("run", ({}, plain), ({}, schema_to_dict(BOTH)))
    assert str(error.value) == (
        "run is of another run: schema.label_weights.like was None and is lw; schema.weight was None and is w; give "
        "another --output-dir, or the same options."
    )
