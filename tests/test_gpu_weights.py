"""What one GPU can prove of weights that are written into a model that has trained: its next lookup reads them.

A table in UVM with a cache has the rows of the last lookups twice: see test_gpu.py for how to run these tests.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from stem_torchrec.checkpoints.state import restore_state
from stem_torchrec.checkpoints.weights import load_weights, save_weights
from stem_torchrec.transfer.add_tasks import add_tasks
from stem_torchrec.transfer.warm_start import warm_start

from gpu_runs import EPS, KERNELS, ON_CPU, ROUNDING, assert_close, assert_same_bits, batches, run_config
from reference import COLUMNS, TABLES, logits_by_formula, random_batch
from runs import Run
from starts import STEPS, batches_for, save_run, start, whole_states

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("gpu_process")]

WITH_SHARE = dataclasses.replace(COLUMNS, labels=(*COLUMNS.labels, "share"))


@pytest.mark.parametrize("kernel", KERNELS)
def test_saved_weights_load_bit_for_bit_into_the_trained_model_and_into_another_kernel(kernel: str, tmp_path: Path):
    run, other = (Run.build(run_config(each, "adagrad")) for each in (kernel, "fused"))
    run.train(batches(4))
    save_weights(run.model, tmp_path / "weights")
    saved = run.weights()
    # Now fused_uvm_caching has later weights of some rows in its cache.
    run.train(batches(8)[4:])
    assert not any(torch.equal(weight, saved[name]) for name, weight in run.weights().items())
    for model in (run.model, other.model):
        load_weights(model, tmp_path / "weights")
    assert_same_bits(run.weights(), saved)
    assert_same_bits(other.weights(), saved)
    # The next lookup reads them as well.
    logits, expected = (each.train(batches(1))[0][1] for each in (run, other))
    torch.testing.assert_close(logits, expected, **ROUNDING)


def assert_next_lookup_reads_the_weights(run: Run) -> None:
    batch = random_batch(0, run.columns)
    expected = logits_by_formula(run.weights(), batch, run.columns.labels, run.config.model)
    [(_, logits)] = run.train([batch])
    torch.testing.assert_close(logits.cpu(), expected, **ROUNDING)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_lookup_after_a_warm_start_reads_the_new_tables(kernel: str):
    run = Run.build(run_config(kernel, "adagrad"))
    tables = [f"{group}/{feature}" for group in (*COLUMNS.labels, "shared") for feature in COLUMNS.sparse]
    source = {f"{table}.weight": torch.randn(run.size_of(table)) for table in tables}
    run.train(batches(4))
    trained = run.weights()
    warm_start(run.model, source, {table: table for table in tables})
    new = {f"{TABLES}.{table}.weight": source[f"{table}.weight"] for table in tables}
    assert_same_bits(run.weights(), trained | new)
    assert_next_lookup_reads_the_weights(run)
    # Nor are rows of the old tables written back later.
    after = run.weights()
    assert all((after[name] != trained[name]).any(dim=1).all() for name in new)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_lookup_after_tasks_were_added_reads_the_new_weights(kernel: str):
    run, other = (
        Run.build(run_config(each, "adagrad"), columns) for each, columns in ((kernel, WITH_SHARE), ("fused", COLUMNS))
    )
    run.train(random_batch(step, WITH_SHARE) for step in range(4))
    other.train(batches(4))
    source = other.weights()
    new = add_tasks(run.model, source, trained=COLUMNS.labels, tables_from="shared")
    assert new == ("share",)
    weights = run.weights()
    for feature in COLUMNS.sparse:
        for group, trained in {"finish": "finish", "like": "like", "shared": "shared", "share": "shared"}.items():
            table, expected = (f"{TABLES}.{each}/{feature}.weight" for each in (group, trained))
            assert torch.equal(weights[table], source[expected]), table
    assert_next_lookup_reads_the_weights(run)


STARTS = [
    *((kernel, "adagrad") for kernel in KERNELS),
    ("dense", "adam"),
    *(() if ON_CPU else (("fused", "adam"), ("fused_uvm_caching", "partial_rowwise_adam"))),
]


@pytest.mark.parametrize(("kernel", "optimizer"), STARTS)
def test_a_run_that_starts_from_a_checkpoint_makes_the_next_steps_of_the_resumed_one(
    kernel: str, optimizer: str, tmp_path: Path
):
    config = run_config(kernel, optimizer, eps=EPS, update_unlabeled_rows=True)
    source, _ = save_run(tmp_path / "runs", config)
    resumed = Run.build(dataclasses.replace(config, seed=7))
    restore_state(resumed.model, resumed.optimizer, source.weights, step=STEPS, tasks=2, same_ranks=True)
    new = Run.build(dataclasses.replace(config, seed=8))
    # Rows that are in a cache by then are forgotten, and so are the lookups, more than the source has made.
    new.train(batches_for(COLUMNS, range(STEPS + 3)))
    start(source, config, run=new)
    for run in (resumed, new):
        run.train(batches_for(COLUMNS, range(STEPS, STEPS + 2)))
    # FBGEMM corrects the bias of moments by a count of its own.
    assert_close(new.weights() | whole_states(new), resumed.weights() | whole_states(resumed))
