"""A loss that is not finite ends the run with the batch kept, or is skipped and changes nothing."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.config import LoopConfig
from stem_torchrec.training.nonfinite import SkippingPipeline

from distributed import run_ranks
from logs import log_table, write_log, write_split
from reference import random_batch
from runs import Run, config_of
from small_runs import run_script

HALVES = (slice(0, 6), slice(6, 12))
BAD_ROW = 300
LINE = ["stem_torchrec/train.py", "--recipe", "tiny", "--data.batch-size", "64", "--train.log-every", "1"]


@dataclasses.dataclass
class Skipped:
    """What a batch with an infinite feature on rank 1 does to this rank."""

    changed: list[str]
    """Weights and optimizer states that it changed."""
    count: int
    """Batches that the pipeline has skipped."""
    next_trains: bool
    """Whether the next batch changed the experts' weights."""


def skip_a_batch(optimizer: str) -> Skipped:
    config = config_of(optimizer, "data_parallel" if optimizer == "adam" else "row_wise")
    run = Run.build(dataclasses.replace(config, train=LoopConfig(skip_nonfinite=True)))
    assert isinstance(run.pipeline, SkippingPipeline)
    part = HALVES[dist.get_rank()]
    run.train([random_batch(seed, part=part) for seed in range(3)])
    weights, bits, states = run.weights(), run.table_bits(), dict(dense_states(run))
    bad = random_batch(3, part=part)
    if dist.get_rank() == 1:
        bad.dense_features[2, 0] = torch.inf
    run.train([bad])
    changed = [name for name, weight in run.weights().items() if not torch.equal(weight, weights[name])]
    changed += [table for table, parts in run.table_bits().items() if not all(map(torch.equal, parts, bits[table]))]
    changed += [name for name, state in dense_states(run) if not torch.equal(state, states[name])]
    run.train([random_batch(4, part=part)])
    trains = all(not torch.equal(weight, weights[name]) for name, weight in run.weights().items() if "experts" in name)
    return Skipped(changed, run.pipeline.skipped, trains)


def dense_states(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Copies of the optimizer states that are plain tensors, by name."""
    for name, states in run.optimizer.state_dict()["state"].items():
        for key, value in states.items():
            if type(value) is Tensor:
                yield f"{name}.{key}", value.clone()


def skip_with_each_optimizer() -> list[Skipped]:
    return [skip_a_batch("rowwise_adagrad"), skip_a_batch("adam")]


def test_a_skipped_batch_changes_nothing_on_any_rank() -> None:
    assert run_ranks(2, skip_with_each_optimizer) == [[Skipped([], 1, True)] * 2] * 2


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 640 rows for training; the price of one is finite, but its products with weights are not."""
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, 640)
    table = log_table(640)
    price = [3e38 if row == BAD_ROW else -row / 640 for row in range(640)]
    table = table.set_column(table.schema.get_field_index("price"), "price", pa.array(price, pa.float32()))
    write_split(folder, table)
    write_split(folder, table.slice(0, 100), split="valid")
    return folder


def test_a_run_whose_loss_is_not_finite_ends_on_all_ranks_and_keeps_the_batch(log: Path, tmp_path: Path) -> None:
    output = run_script(*LINE, "--data.path", log, "--output-dir", tmp_path / "run", ranks=2, status=2)
    [file] = (tmp_path / "run/nonfinite").iterdir()
    step, rank = map(int, file.stem.removeprefix("step-").split("-rank-"))
    assert f"the loss at step {step} is not finite on rank {rank}" in output
    assert str(file) in output
    assert output.count("error:") == 1
    batch, rows = pq.read_table(file), pq.read_table(log / "train").to_pylist()
    assert batch.column_names == ["row", "tags", "place", "age", "price", "finish", "like"]
    kept = batch.to_pylist()
    assert len(kept) == 64
    assert BAD_ROW in [number for row in kept for number in row["row"]]
    for row in kept:
        [number] = row["row"]
        assert row["tags"] == (rows[number]["tags"] or [])
        assert (row["age"], row["price"]) == (rows[number]["age"], rows[number]["price"])
        assert row["like"] == rows[number]["like"]


def test_a_run_skips_the_batch_if_it_may_and_logs_the_losses_of_the_others(log: Path, tmp_path: Path) -> None:
    options = ["--data.path", log, "--output-dir", tmp_path / "run", "--train.skip-nonfinite"]
    run_script(*LINE, *options, ranks=2)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["count/skipped_batches"] == 1
    losses = [line["train/loss/finish"] for line in lines if "train/loss/finish" in line]
    assert len(losses) == 5
    assert all(map(math.isfinite, losses))
    assert not (tmp_path / "run/nonfinite").exists()
