"""What one GPU can prove of the kernels: they learn what the equations say, isolate tasks, and repeat.

`pytest -m gpu` runs these tests and those of test_gpu_weights.py and test_gpu_runs.py. They need a CUDA device and
fbgemm-gpu, and are skipped without them. With STEM_GPU_TESTS_ON_CPU=1 they run on the CPU instead, with the kernels,
optimizers and precisions that a CPU has and with smaller batches. That tests only the tests.
"""

import dataclasses
import math
from itertools import product

import pytest
import torch

from stem_torchrec.sharding.placement import FUSED_KERNELS, FUSED_TYPES
from stem_torchrec.training.fresh_tables import begin_anew

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
    rows_that_differ,
    run_config,
    two_runs,
)
from reference import COLUMNS, logits_by_formula, random_batch, train_by_hand
from runs import Run, batches_of_ranks, with_labels_of

# Libraries warn of other things on a GPU, and in other versions than the pinned ones, so a warning is no error.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("gpu_process")]

OPTIMIZERS = ("sgd", "adagrad", "rowwise_adagrad")
DECAYING = ("rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam")
# FBGEMM fuses no moments and has no weight decay on CPU.
LEARNED = [
    *((kernel, optimizer, "split", 0.0) for kernel, optimizer in product(KERNELS, OPTIMIZERS)),
    *((kernel, optimizer, "packed", 0.0) for kernel, optimizer in product(KERNELS, ("sgd", "adagrad"))),
    *((kernel, "adam", "split", 0.0) for kernel in KERNELS if kernel == "dense" or not ON_CPU),
    *((kernel, optimizer, "split", 0.1) for kernel, optimizer in product(FUSED, DECAYING) if not ON_CPU),
]
WITH_MOMENTS = [("dense", "adam", 0.0), *(() if ON_CPU else product(FUSED, DECAYING, (0.01,)))]
# bf16 keeps 8 bits and rounds, so a factor is off by up to 2^-9. A tensor core takes the first 11 bits for tf32, so a
# factor is off by up to 2^-10. Six layers with up to 24 summands add their errors up.
SHARES_OF_LARGEST_LOGIT = {"bf16": 0.02, "tf32": 0.01}
# With more ids of a row than this in a batch, FBGEMM lets several blocks of threads add to the row's gradient, in any
# order.
IDS_OF_A_BLOCK = 1024


@pytest.mark.parametrize(("kernel", "optimizer", "layout", "decay"), LEARNED)
def test_twenty_steps_equal_the_equations_trained_by_hand(kernel: str, optimizer: str, layout: str, decay: float):
    sparse = {"learning_rate": 5.0} if optimizer == "sgd" else {"eps": EPS, "weight_decay": decay}
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
def test_one_task_changes_bits_of_its_own_and_the_shared_parts_only(kernel: str, optimizer: str, num_layers: int):
    run = Run.build(run_config(kernel, optimizer, model={"num_layers": num_layers}))
    # The first steps fill the optimizer states.
    run.train(batches(3))
    for task, label in enumerate(COLUMNS.labels):
        tables, dense = run.table_bits(), run.dense_bits()
        run.train(with_labels_of(task, batches(5)[3:]))
        trained = {f"{group}/{feature}" for group in (label, "shared") for feature in COLUMNS.sparse}
        assert changed_tables(run.table_bits(), tables) == trained
        # Of a dense parameter that makes a step at least the count of steps changes.
        trained = {name for name in dense if {label, "shared"} & set(name.split("."))}
        assert changed_tables(run.dense_bits(), dense) == trained


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


@pytest.mark.parametrize(("kernel", "optimizer", "decay"), WITH_MOMENTS)
def test_frozen_groups_keep_their_bits_with_moments_and_decay(kernel: str, optimizer: str, decay: float):
    config = run_config(kernel, optimizer, weight_decay=decay, update_unlabeled_rows=True)
    run = Run.build(dataclasses.replace(config, train=dataclasses.replace(config.train, freeze=("like", "shared"))))
    tables, dense = run.table_bits(), run.dense_bits()
    run.train(batches(3))
    assert changed_tables(run.table_bits(), tables) == {f"finish/{feature}" for feature in COLUMNS.sparse}
    assert changed_tables(run.dense_bits(), dense) == {name for name in dense if "finish" in name.split(".")}


@pytest.mark.parametrize("kernel", KERNELS)
def test_tables_that_begin_anew_learn_as_new_ones_and_the_rest_keeps_its_bits(kernel: str):
    run = Run.build(run_config(kernel, "rowwise_adagrad"))
    before = run.weights()
    run.train(batches(3))
    random_state = torch.get_rng_state if ON_CPU else torch.cuda.get_rng_state
    dense, drawn = run.dense_bits(), random_state()
    begin_anew(run.model, run.optimizer, seed=run.config.seed)
    assert changed_tables(run.dense_bits(), dense) == set()
    # Dropout goes on where it was.
    assert torch.equal(random_state(), drawn)
    for name in ids_of_tables(*batches(1)):
        assert torch.equal(run.weights()[name], before[name]), name
    run.train(batches(1))
    after = run.weights()
    for name, ids in ids_of_tables(*batches(1)).items():
        assert torch.isin(rows_that_differ(after[name], before[name]), ids).all(), name


@pytest.mark.skipif(ON_CPU, reason="FBGEMM has no weight decay on CPU, so a run with one is refused")
@pytest.mark.parametrize("optimizer", DECAYING)
@pytest.mark.parametrize("kernel", FUSED_KERNELS)
def test_decay_moves_every_row_that_is_looked_up_also_without_a_label(kernel: str, optimizer: str):
    run = Run.build(run_config(kernel, optimizer, weight_decay=0.1, update_unlabeled_rows=True))
    before = run.weights()
    run.train(with_labels_of(0, batches(1)))
    after = run.weights()
    for name, ids in ids_of_tables(*batches(1)).items():
        assert after[name].isfinite().all(), name
        assert torch.equal(rows_that_differ(after[name], before[name]), ids), name


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_batch_whose_loss_is_not_finite_is_skipped_and_changes_nothing(kernel: str):
    config = run_config(kernel, "adagrad")
    run = Run.build(dataclasses.replace(config, train=dataclasses.replace(config.train, skip_nonfinite=True)))
    run.train(batches(3))
    tables, dense = run.table_bits(), run.dense_bits()
    bad = random_batch(3)
    bad.dense_features[2, 0] = torch.inf
    run.train([bad])
    assert run.pipeline.skipped == 1
    assert changed_tables(run.table_bits(), tables) == changed_tables(run.dense_bits(), dense) == set()


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
def test_batches_of_all_sizes_give_logits_near_the_formula_in_every_precision(precision: str, rows: int):
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


def test_two_runs_end_with_the_same_bits_if_one_block_adds_up_every_row():
    first, second, ids = two_runs(2048)
    assert ids <= IDS_OF_A_BLOCK
    assert_same_bits(first.weights(), second.weights())
    assert changed_tables(first.table_bits(), second.table_bits()) == set()


def test_two_runs_differ_by_rounding_only_if_several_blocks_add_up_a_row():
    first, second, ids = two_runs(8192)
    assert ids > IDS_OF_A_BLOCK
    assert_close(first.weights(), second.weights())
