"""Losses that are not finite: the run ends with the batch kept, or skips it and touches nothing."""

import dataclasses
from pathlib import Path
from threading import Event

import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.checkpoints.watch import RunWatch
from stem_torchrec.config import LoopConfig
from stem_torchrec.runtime.errors import DivergedError
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.nonfinite import SkippingPipeline, keep_batch

from distributed import run_ranks
from reference import COLUMNS, random_batch
from runs import Run, config_of

HALVES = (slice(0, 6), slice(6, 12))


def skip_a_batch(optimizer: str) -> tuple[list[str], int, bool]:
    """What a batch with an infinite feature on rank 1 changes, batches skipped, and whether the next one trains."""
    config = config_of(optimizer, "data_parallel" if optimizer == "adam" else "row_wise")
    run = Run.build(dataclasses.replace(config, train=LoopConfig(skip_nonfinite=True)))
    part = HALVES[dist.get_rank()]
    run.train([random_batch(seed, part=part) for seed in range(3)])
    assert isinstance(run.pipeline, SkippingPipeline)
    weights, bits = run.weights(), run.table_bits()
    states = {
        f"{name}.{key}": value.clone()
        for name, held in run.optimizer.state_dict()["state"].items()
        for key, value in held.items()
        if type(value) is Tensor
    }
    bad = random_batch(3, part=part)
    if dist.get_rank() == 1:
        bad.dense_features[2, 0] = torch.inf
    run.train([bad])
    changed = [name for name, weight in run.weights().items() if not torch.equal(weight, weights[name])]
    changed += [table for table, held in run.table_bits().items() if not all(map(torch.equal, held, bits[table]))]
    changed += [
        f"{name}.{key}"
        for name, held in run.optimizer.state_dict()["state"].items()
        for key, value in held.items()
        if type(value) is Tensor and not torch.equal(value, states[f"{name}.{key}"])
    ]
    run.train([random_batch(4, part=part)])
    trains = all(not torch.equal(weight, weights[name]) for name, weight in run.weights().items() if "experts" in name)
    return changed, run.pipeline.skipped, trains


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
def test_a_skipped_batch_touches_nothing_on_any_rank(optimizer: str) -> None:
    assert run_ranks(2, skip_a_batch, optimizer) == [([], 1, True)] * 2


def watch_losses(folder: Path) -> tuple[list[bool], str]:
    """What ranks ask for when rank 1 has a loss that is not finite at step 2, and how they end."""

    def keep(step: int, batch: object) -> Path:
        return keep_batch(random_batch(step), folder, COLUMNS, name=f"step-{step}")

    watch = RunWatch(lambda *_, **__: None, seconds=None, ending=Event(), keep_batch=keep, timeout=60)
    asked = []
    for step in range(1, 5):
        bad = step == 2 and dist.get_rank() == 1
        asked.append(watch.should_pause(step, random_batch(step), torch.tensor([0.5, torch.nan if bad else 0.5])))
    with pytest.raises(DivergedError) as error:
        watch.check_finite()
    return asked, str(error.value)


def test_all_ranks_end_after_the_same_step_and_name_the_bad_one(tmp_path: Path) -> None:
    (asked, said), other = run_ranks(2, watch_losses, tmp_path)
    assert other == (asked, said)
    # Seen at the next step, known to all at the one after.
    assert asked == [False, False, False, True]
    assert "the loss at step 2 is not finite on rank 1" in said
    assert str(tmp_path / "step-2.parquet") in said
    kept, batch = pq.read_table(tmp_path / "step-2.parquet"), random_batch(2)
    assert kept.column_names == ["uid", "tags", "age", "price", "finish", "like"]
    for name, feature in batch.sparse_features.to_dict().items():
        assert kept.column(name).to_pylist() == [bag.tolist() for bag in feature.to_dense()]
    assert kept.column("age").to_pylist() == batch.dense_features[:, 0].tolist()
    labels = [None if value != value else value for value in batch.labels[:, 1].tolist()]
    assert kept.column("like").to_pylist() == labels


def read_meter() -> dict[str, float | int | None]:
    meter = Meter(["a", "b"])
    for losses in ([1.0, 2.0], [torch.nan, 1.0], [2.0, torch.inf], [3.0, 4.0]):
        meter.add(torch.tensor(losses), rows=4)
    return meter.read()


def test_mean_losses_are_those_of_the_finite_ones() -> None:
    (values,) = run_ranks(1, read_meter)
    assert (values["train/loss/a"], values["train/loss/b"]) == (2.0, 3.0)
