"""The loss is the mean over the labels of all ranks: training on several ranks is that of one process on all rows."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.checkpoints.folder import checkpoint_path
from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.config import DenseOptimizerConfig
from stem_torchrec.data.label_counts import LabelCounter
from stem_torchrec.models.build import build_model
from stem_torchrec.models.loss import multi_task_loss
from stem_torchrec.models.table import MODELS, with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters

from distributed import run_ranks
from reference import COLUMNS, TABLES, random_batch
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, progress_after, with_labels_of

ROWS = 10
"""Rows of a global batch; the last rank has padding instead of the rows that are missing to 12."""
STEPS = 3


def part_of_batch(step: int, rank: int, ranks: int) -> Batch:
    """A rank's part of a batch: `finish` has one label in its first half, `like` has none in the second."""
    rows = 12 // ranks
    part = slice(rank * rows, min(rank * rows + rows, ROWS))
    batch = random_batch(step, rows=ROWS, missing=0.0, part=part)
    position = torch.arange(part.start, part.stop)
    batch.labels[(position > 0) & (position < 6), 0] = math.nan
    batch.labels[position >= 6, 1] = math.nan
    return batch if ranks == 1 else padded(batch, rows)


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with rows at its end that have neither ids nor labels, as the reader adds them."""
    features, more = batch.sparse_features, rows - len(batch.labels)
    lengths = torch.nn.functional.pad(features.lengths().view(len(features.keys()), -1), (0, more))
    return Batch(
        torch.nn.functional.pad(batch.dense_features, (0, 0, 0, more)),
        KeyedJaggedTensor(features.keys(), features.values(), lengths=lengths.flatten()),
        torch.nn.functional.pad(batch.labels, (0, 0, 0, more), value=math.nan),
    )


@dataclasses.dataclass
class Trained:
    """What steps made of a model on a rank."""

    losses: list[Tensor]
    """(T,) of each step."""
    tables: dict[str, Tensor]
    """After the last step."""
    gradients: dict[str, Tensor]
    """Of the dense part in the last step, without those that are left out."""


def train_models(archs: Iterable[str]) -> dict[str, Trained]:
    outcomes = {}
    for arch in archs:
        # No steps of the dense part: Adam divides by the size of a gradient, which magnifies rounding.
        config = config_of("sgd", "row_wise", model=with_arch(MODEL, arch), learning_rate=5.0)
        run = Run.build(dataclasses.replace(config, dense=DenseOptimizerConfig(learning_rate=0.0)))
        outputs = run.train([part_of_batch(step, dist.get_rank(), dist.get_world_size()) for step in range(STEPS)])
        tables = {name: weight for name, weight in run.weights().items() if TABLES in name}
        named = run.model.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if TABLES not in name and p.grad is not None}
        outcomes[arch] = Trained([losses for losses, _ in outputs], tables, gradients)
    return outcomes


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_with_different_numbers_of_labels_train_every_model_as_one_process_does(ranks: int) -> None:
    [alone], together = run_ranks(1, train_models, list(MODELS)), run_ranks(ranks, train_models, list(MODELS))
    # The same sums of float32 in another order, which three steps of up to 1 carry on.
    rounding = {"rtol": 1e-5, "atol": 1e-6}
    for arch, expected in alone.items():
        for step, losses in enumerate(expected.losses):
            mean = sum(rank[arch].losses[step] for rank in together) / ranks
            torch.testing.assert_close(mean, losses, **rounding)
        for rank in together:
            torch.testing.assert_close(rank[arch].tables, expected.tables, **rounding)
            torch.testing.assert_close(rank[arch].gradients, expected.gradients, **rounding)
        assert max(gradient.abs().max() for gradient in expected.gradients.values()) > 1e-3, arch


@pytest.mark.parametrize("arch", MODELS)
def test_a_parameter_gets_gradients_only_from_the_tasks_that_are_derived_for_it(arch: str) -> None:
    for options in (with_arch(MODEL, arch), with_arch(MODEL, arch, dropout=0.5, embedding_l2=0.1)):
        before = torch.get_rng_state()
        train = build_model(options, COLUMNS, table_device="cpu").train()
        torch.set_rng_state(before)
        derived = tasks_of_parameters(train, tasks=2, dense_in_features=2)
        assert torch.equal(torch.get_rng_state(), before)
        seen: dict[str, set[int]] = {name: set() for name, _ in train.named_parameters()}
        for task in range(2):
            for batch in with_labels_of(task, [random_batch(seed, rows=64) for seed in range(3)]):
                train.zero_grad()
                train(batch)[0].backward()
                for name, p in train.named_parameters():
                    if p.grad is not None and p.grad.count_nonzero():
                        seen[name].add(task)
        # On 192 rows each layer has some unit that is on.
        assert derived == {name: frozenset(tasks) for name, tasks in seen.items()}


def test_stem_trains_experts_gates_and_towers_by_their_task_and_ablated_stem_by_all() -> None:
    owners = {"finish": {0}, "like": {1}, "shared": {0, 1}}
    for trains in ("own_shared", "all"):
        model = build_model(dataclasses.replace(MODEL, num_layers=3, trains=trains), COLUMNS)
        for name, tasks in tasks_of_parameters(model, tasks=2, dense_in_features=2).items():
            [owner] = [owners[word] for word in name.replace("/", ".").split(".") if word in owners]
            own_only = trains == "own_shared" or "towers" in name or "layers.2.gates" in name
            assert tasks == (owner if own_only else {0, 1}), name


def test_a_model_alone_divides_by_its_own_labels() -> None:
    train, [batch] = build_model(MODEL, COLUMNS, table_device="cpu"), batches_of_ranks(1, 1, missing=0.3)[0]
    _, (losses, logits) = train(batch)
    assert torch.equal(losses, multi_task_loss(logits, batch.labels))
    [counted] = LabelCounter().counted([batch])
    assert torch.equal(train(counted)[1][0], losses)


def test_counts_go_with_a_batch_to_a_device() -> None:
    [counted] = LabelCounter().counted([Batch(torch.zeros(2, 0), None, torch.tensor([1.0, math.nan]))])
    counted.sparse_features = random_batch(0, rows=2).sparse_features
    assert counted.to(torch.device("cpu")).labels_of_step.per_rank().tolist() == [1.0]


def test_equal_numbers_of_labels_leave_every_bit_of_the_loss_as_it_is() -> None:
    logits, labels = torch.randn(7, 2), torch.randint(2, (7, 2)).float()
    for ranks in (2, 3, 8):
        per_rank = torch.full((2,), 7 * ranks, dtype=torch.float64) / ranks
        assert torch.equal(multi_task_loss(logits, labels, per_rank.float()), multi_task_loss(logits, labels))


def train_without_likes(folder: Path) -> list[bool]:
    """Whether `like` starts as it was built, and whether a resumed run goes on with the same bits."""
    config = config_of("adagrad", "row_wise")
    batches = of_this_rank(batches_of_ranks(8, dist.get_world_size(), missing=0.3))
    run = Run.build(config)
    built = run.dense_bits()
    run.train(with_labels_of(0, batches[:5]))
    after = run.dense_bits()
    unchanged = [
        all(map(torch.equal, bits, after[name])) and not bits[1].any() for name, bits in built.items() if "like" in name
    ]
    saver = CheckpointSaver(str(folder))
    state = training_state(run.model, run.optimizer, torch.zeros(6))
    # As an earlier version saved it, with other sums of the losses.
    of_rank = state["rank"][str(dist.get_rank())]
    of_rank["losses"] = of_rank.pop("meter")[:5]
    saver.save(state, progress_after(5), wait=True)
    saver.close()
    run.train(batches[5:])
    resumed = Run.build(config)
    saved = checkpoint_path(str(folder), 5)
    meter = restore_state(resumed.model, resumed.optimizer, saved, step=5, tasks=2, same_ranks=True)
    resumed.train(batches[5:])
    expected, tables = run.dense_bits(), run.table_bits()
    same = [all(map(torch.equal, bits, expected[name])) for name, bits in resumed.dense_bits().items()]
    same += [all(map(torch.equal, bits, tables[table])) for table, bits in resumed.table_bits().items()]
    likes = [bool(bits[1] == 3) for name, bits in expected.items() if "like" in name]
    return [meter is None, len(unchanged) > 0, *unchanged, *same, *likes]


def test_a_task_without_labels_stays_as_built_and_starts_with_its_first_label_also_after_a_resume(
    tmp_path: Path,
) -> None:
    for facts in run_ranks(2, train_without_likes, tmp_path):
        assert all(facts)
