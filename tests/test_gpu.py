"""What one GPU can prove: every kernel learns what the equations say, isolates tasks, and saves, resumes and repeats.

`pytest -m gpu` runs these tests. They need a CUDA device and fbgemm-gpu, and are skipped without them.
With STEM_GPU_TESTS_ON_CPU=1 they run on the CPU instead, with the kernels, optimizers and precisions that a CPU has and
with smaller batches. That tests only the tests.
"""

import dataclasses
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from threading import Event

import pytest
import torch

from stem_torchrec.checkpoints.weights import load_weights, save_weights
from stem_torchrec.config import CheckpointConfig, ShardingConfig
from stem_torchrec.data import synthetic
from stem_torchrec.runtime.errors import Interrupted
from stem_torchrec.runtime.process import Process
from stem_torchrec.sharding.placement import FUSED_KERNELS, FUSED_TYPES
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import train

from gpu_runs import (
    EPS,
    FUSED,
    KERNELS,
    ON_CPU,
    ROUNDING,
    assert_close,
    assert_same_bits,
    batches,
    changed_tables,
    ids_of_tables,
    one_process,
    rows_that_differ,
    run_config,
    two_runs,
    what_is_missing,
)
from recovery.train_runs import differences
from reference import COLUMNS, logits_by_formula, random_batch, train_by_hand
from runs import Run, batches_of_ranks, with_labels_of

# Libraries warn of other things on a GPU, and in other versions than the pinned ones, so a warning is no error.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
DECAYING = ("rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam")
# FBGEMM fuses no moments and has no weight decay on CPU.
LEARNED = [
    *((kernel, optimizer, "split") for kernel, optimizer in product(KERNELS, OPTIMIZERS)),
    *((kernel, optimizer, "packed") for kernel, optimizer in product(KERNELS, ("sgd", "adagrad"))),
    *((kernel, "adam", "split") for kernel in KERNELS if kernel == "dense" or not ON_CPU),
]
WITH_MOMENTS = [("dense", "adam", 0.0), *(() if ON_CPU else product(FUSED, DECAYING, (0.01,)))]
RESUMED = [
    *((kernel, "rowwise_adagrad") for kernel in KERNELS),
    ("dense", "adam"),
    *(() if ON_CPU else (("fused", "adam"), ("fused_uvm_caching", "lamb"))),
]
# bf16 keeps 8 bits and rounds, so a factor is off by up to 2^-9. A tensor core takes the first 11 bits for tf32, so a
# factor is off by up to 2^-10. Six layers with up to 24 summands add their errors up.
SHARES_OF_LARGEST_LOGIT = {"bf16": 0.02, "tf32": 0.01}
# With more ids of a row than this in a batch, FBGEMM lets several blocks of threads add to the row's gradient, in any
# order; deterministic algorithms let only one.
IDS_OF_A_BLOCK = 1024


@pytest.fixture(scope="module", autouse=True)
def process() -> Iterator[Process]:
    """This process, which stays in a process group until the tests of this file end."""
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with one_process() as process:
        yield process


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the synthetic log of the recipe `tiny`."""
    folder = str(tmp_path_factory.mktemp("log") / "log")
    synthetic.ensure(tiny().data.synthetic, folder)
    return folder


@pytest.mark.parametrize(("kernel", "optimizer", "layout"), LEARNED)
def test_twenty_steps_equal_the_equations_trained_by_hand(kernel: str, optimizer: str, layout: str):
    sparse = {"learning_rate": 5.0} if optimizer == "sgd" else {"eps": EPS}
    config = run_config(kernel, optimizer, model={"layout": layout}, **sparse)
    run = Run.build(config)
    before = run.weights()
    run.train(batches(20))
    after = run.weights()
    assert_close(after, train_by_hand(before, batches_of_ranks(20, 1, missing=0.3), COLUMNS.labels, config))
    for name, weight in after.items():
        # Far beyond the tolerance, so that equality means something.
        assert (weight - before[name]).abs().max() > 1e-4, name


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_one_task_changes_bits_of_its_own_and_the_shared_tables_only(kernel: str, optimizer: str, num_layers: int):
    run = Run.build(run_config(kernel, optimizer, model={"num_layers": num_layers}))
    # The first steps fill the optimizer states.
    run.train(batches(3))
    for task, label in enumerate(COLUMNS.labels):
        before = run.table_bits()
        run.train(with_labels_of(task, batches(5)[3:]))
        trained = {f"{group}/{feature}" for group in (label, "shared") for feature in COLUMNS.sparse}
        assert changed_tables(run.table_bits(), before) == trained


@pytest.mark.parametrize(("kernel", "optimizer", "decay"), WITH_MOMENTS)
def test_moments_and_decay_learn_and_move_only_rows_that_are_looked_up(kernel: str, optimizer: str, decay: float):
    run = Run.build(run_config(kernel, optimizer, weight_decay=decay, update_unlabeled_rows=True))
    before = run.weights()
    losses = [losses.sum().item() for losses, _ in run.train(batches(1) * 30)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    after = run.weights()
    for name, ids in ids_of_tables(*batches(1)).items():
        assert torch.isin(rows_that_differ(after[name], before[name]), ids).all(), name


@pytest.mark.skipif(ON_CPU, reason="FBGEMM has no weight decay on CPU, so a run with one is refused")
@pytest.mark.parametrize("optimizer", DECAYING)
@pytest.mark.parametrize("kernel", FUSED_KERNELS)
def test_decay_reaches_every_row_that_is_looked_up_and_no_other(kernel: str, optimizer: str):
    weights = []
    for decay in (0.0, 0.1):
        run = Run.build(run_config(kernel, optimizer, weight_decay=decay, update_unlabeled_rows=True))
        run.train(batches(1))
        weights.append(run.weights())
    for name, ids in ids_of_tables(*batches(1)).items():
        assert torch.equal(rows_that_differ(*(each[name] for each in weights)), ids), name


@pytest.mark.parametrize("sharding_type", FUSED_TYPES)
@pytest.mark.parametrize("kernel", FUSED)
def test_once_learns_the_same_bits_as_stock(kernel: str, sharding_type: str):
    stock, once = (
        Run.build(run_config(kernel, "adagrad", sharding_type=sharding_type, input_dist=input_dist))
        for input_dist in ("stock", "once")
    )
    for (_, expected), (_, logits) in zip(stock.train(batches(6)), once.train(batches(6)), strict=True):
        assert torch.equal(logits, expected)
    assert_same_bits(once.weights(), stock.weights())
    assert changed_tables(once.table_bits(), stock.table_bits()) == set()


# A dimension of a CUDA grid has at most 65,535 blocks, and a gate multiplies matrices for each row.
@pytest.mark.parametrize("rows", [12, 10_000 if ON_CPU else 140_000])
@pytest.mark.parametrize("precision", ["fp32", "bf16"] if ON_CPU else ["fp32", "tf32", "bf16"])
def test_small_and_large_batches_give_logits_near_the_formula_in_every_precision(precision: str, rows: int):
    config = run_config("fused", "adagrad", precision=precision)
    run = Run.build(config)
    batch = random_batch(1, rows=rows)
    expected = logits_by_formula(run.weights(), batch, COLUMNS.labels, config.model)
    outputs = run.train([batch] * 3)
    assert all(losses.isfinite().all() for losses, _ in outputs)
    assert all(weight.dtype == torch.float32 for weight in run.weights().values())
    losses, logits = outputs[0]
    assert losses.dtype == logits.dtype == torch.float32
    atol = ROUNDING["atol"]
    if precision in SHARES_OF_LARGEST_LOGIT:
        atol = SHARES_OF_LARGEST_LOGIT[precision] * expected.abs().max().item()
    torch.testing.assert_close(logits.cpu(), expected, rtol=0, atol=atol)
    if precision == "bf16":
        assert (logits.cpu() - expected).abs().max() > ROUNDING["atol"], "nothing ran in bf16"


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


@pytest.mark.parametrize(("kernel", "optimizer"), RESUMED)
def test_an_interrupted_run_ends_with_the_bits_of_one_that_never_was(
    kernel: str, optimizer: str, process: Process, log: str, tmp_path: Path
):
    recipe = tiny()
    whole, interrupted = (
        dataclasses.replace(
            recipe,
            data=dataclasses.replace(recipe.data, path=log, num_workers=1),
            model=dataclasses.replace(recipe.model, dropout=0.1),
            sparse=dataclasses.replace(recipe.sparse, name=optimizer, update_unlabeled_rows=True),
            sharding=ShardingConfig(kernel=kernel),
            train=dataclasses.replace(recipe.train, max_steps=24, eval_every=10, log_every=4),
            checkpoint=CheckpointConfig(minutes=None, steps=8),
            output_dir=str(tmp_path / name),
        )
        for name in ("whole", "interrupted")
    )
    train(whole, process)
    ending = Event()
    with pytest.raises(Interrupted):
        train(interrupted, process, watch=lambda metrics: ending.set(), ending=ending)
    train(interrupted, process)
    assert differences(tmp_path / "interrupted", tmp_path / "whole") == []


def test_two_runs_end_with_the_same_bits_if_one_block_adds_up_every_row():
    first, second, ids = two_runs(2048)
    assert ids <= IDS_OF_A_BLOCK
    assert_same_bits(first.weights(), second.weights())
    assert changed_tables(first.table_bits(), second.table_bits()) == set()


def test_two_runs_differ_by_rounding_only_if_several_blocks_add_up_a_row():
    first, second, ids = two_runs(8192)
    assert ids > IDS_OF_A_BLOCK
    assert_close(first.weights(), second.weights())


def test_two_runs_with_deterministic_algorithms_end_with_the_same_bits_whatever_the_batches():
    # Only a warning, as torch counts operations that have no deterministic algorithm on CUDA.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second, ids = two_runs(8192)
    finally:
        torch.use_deterministic_algorithms(False)
    assert ids > IDS_OF_A_BLOCK
    assert_same_bits(first.weights(), second.weights())
    assert changed_tables(first.table_bits(), second.table_bits()) == set()
