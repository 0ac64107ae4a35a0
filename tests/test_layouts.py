"""Packed tables hold, learn and save the same bits as split ones, and each layout reads what the other wrote."""

import dataclasses
import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.nn.functional import embedding_bag
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from stem_torchrec.checkpoints.weights import load_state
from stem_torchrec.config import ShardingType, SparseOptimizerConfig, TrainConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SparseArch, groups_of, split_columns
from stem_torchrec.training.optimizers import apply_sparse_optimizer

from distributed import run_ranks
from reference import COLUMNS, TABLES, train_by_hand
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank, with_labels_of

STEPS = 10
# Ranks, how many of them are on a host, and the optimizer.
ON_MESHES = pytest.mark.parametrize(
    ("mesh", "optimizer"),
    [
        ((2, 2), "adagrad"),
        *(pytest.param(mesh, name, marks=pytest.mark.long) for mesh, name in [((2, 2), "sgd"), ((4, 2), "adagrad")]),
        pytest.param((4, 2), "sgd", marks=pytest.mark.long),
    ],
    ids=str,
)
TYPES = [t for t in get_args(ShardingType) if t != "auto"]
PACKED = dataclasses.replace(MODEL, layout="packed")
Weights = dict[str, Tensor]


@dataclass
class Trained:
    before: Weights
    after: Weights
    logits: list[Tensor]
    pipelined_modules: int


@dataclass
class Results:
    trained: dict[tuple[str, str], Trained]
    """By layout and sharding type."""
    changed: dict[str, list[dict[str, set[str]]]]
    """What of each of this rank's tables, in split names, steps on one task's labels changed: weights, states, both or
    nothing; by type and task."""


@dataclass
class Resumed:
    resumed: dict[str, Weights]
    """After 5 steps, a change of the layout, and 5 more."""
    uninterrupted: dict[str, Weights]
    """After 10 steps in the split layout, by optimizer."""
    messages: dict[str, str]


def config_of_case(layout: str, optimizer: str, sharding_type: str) -> TrainConfig:
    model = PACKED if layout == "packed" else MODEL
    if optimizer == "sgd":
        return config_of(optimizer, sharding_type, model=model, learning_rate=5.0)
    return config_of(optimizer, sharding_type, model=model, eps=1e-4)  # See test_sharded.


def train_case(layout: str, optimizer: str, sharding_type: str) -> Trained:
    run = Run.build(config_of_case(layout, optimizer, sharding_type))
    before = run.weights()
    outputs = run.train(of_this_rank(batches_of_ranks(STEPS, dist.get_world_size())))
    return Trained(before, run.weights(), [logits for _, logits in outputs], len(run.pipeline._pipelined_modules))


def train_one_task(optimizer: str, sharding_type: str) -> list[dict[str, set[str]]]:
    """What steps on each task's labels change in packed tables, once steps on all labels have filled the states."""
    run = Run.build(config_of_case("packed", optimizer, sharding_type))
    batches = of_this_rank(batches_of_ranks(5, dist.get_world_size(), missing=0.3))
    run.train(batches[:3])
    kinds = ("weights",) if optimizer == "sgd" else ("weights", "states")
    changed = []
    for task in range(len(COLUMNS.labels)):
        before = run.table_bits()
        run.train(with_labels_of(task, batches[3:]))
        changed.append({})
        for table, pieces in run.table_bits().items():
            # The weights of all shards, then their states.
            shards, rest = divmod(len(pieces), len(kinds))
            assert not rest
            changed[-1][table] = {
                kinds[i // shards]
                for i, (old, new) in enumerate(zip(before[table], pieces, strict=True))
                if not torch.equal(old, new)
            }
    return changed


def save(run: Run, folder: Path) -> None:
    dcp.save({"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}, checkpoint_id=folder)


def resume(config: TrainConfig, folder: Path, columns: Columns = COLUMNS) -> Run:
    run = Run.build(dataclasses.replace(config, seed=1), columns)  # Other weights than those that are loaded.
    run.optimizer.init_state(set())
    state = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    load_state(state, folder)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    return run


def resume_all(folder: Path) -> tuple[dict[str, Weights], dict[str, Weights]]:
    batches = of_this_rank(batches_of_ranks(STEPS, 2))
    uninterrupted, resumed = {}, {}
    for optimizer, sharding_type in (("adagrad", "table_wise"), ("adam", "data_parallel")):
        run = Run.build(config_of_case("split", optimizer, sharding_type))
        run.train(batches[:5])
        save(run, folder / optimizer)
        run.train(batches[5:])
        uninterrupted[optimizer] = run.weights()
    for optimizer, sharding_type in (("adagrad", "column_wise"), ("adam", "data_parallel")):
        run = resume(config_of_case("packed", optimizer, sharding_type), folder / optimizer)
        run.train(batches[5:])
        resumed[f"{optimizer} {sharding_type}"] = run.weights()
    for sharding_type in TYPES:
        # Through packed tables of any type and back: what is trained on is what was saved.
        run = resume(config_of_case("packed", "adagrad", sharding_type), folder / "adagrad")
        save(run, folder / sharding_type)
        run = resume(config_of_case("split", "adagrad", "table_wise"), folder / sharding_type)
        run.train(batches[5:])
        resumed[f"adagrad through {sharding_type}"] = run.weights()
    return uninterrupted, resumed


def refuse_states(folder: Path) -> dict[str, str]:
    """What loading optimizer states says that do not fit."""
    run = Run.build(config_of_case("split", "rowwise_adagrad", "table_wise"))
    run.train(of_this_rank(batches_of_ranks(1, 2)))
    save(run, folder / "rowwise_adagrad")
    messages = {}
    for saved, optimizer in (("rowwise_adagrad", "adagrad"), ("adagrad", "adam")):
        sharding_type = "data_parallel" if optimizer == "adam" else "row_wise"
        with pytest.raises(UserError) as error:
            resume(config_of_case("packed", optimizer, sharding_type), folder / saved)
        messages[saved] = str(error.value)
    return messages


def train_all_cases(optimizer: str) -> Results:
    trained = {
        (layout, sharding_type): train_case(layout, optimizer, sharding_type)
        for layout in ("split", "packed")
        for sharding_type in TYPES
    }
    return Results(trained, {sharding_type: train_one_task(optimizer, sharding_type) for sharding_type in TYPES})


def change_layouts(folder: Path) -> Resumed:
    uninterrupted, resumed = resume_all(folder)
    return Resumed(resumed, uninterrupted, refuse_states(folder))


@functools.cache
def results(mesh: tuple[int, int], optimizer: str) -> list[Results]:
    return run_ranks(mesh[0], train_all_cases, optimizer, ranks_per_host=mesh[1], timeout=300)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> list[Resumed]:
    return run_ranks(2, change_layouts, tmp_path_factory.mktemp("states"), timeout=300)


def assert_equal(weights: Weights, expected: Weights) -> None:
    assert set(weights) == set(expected)
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name


@ON_MESHES
def test_packed_tables_start_predict_and_learn_as_split_ones_bit_for_bit(mesh: tuple[int, int], optimizer: str):
    for rank, sharding_type in itertools.product(results(mesh, optimizer), TYPES):
        # DistributedDataParallel's ring sums more than two ranks in an order that depends on where an element lies in
        # the bucket; see test_sharded for the size of rounding.
        atol = 1e-5 if sharding_type == "data_parallel" and mesh[0] > 2 else 0
        split, packed = (rank.trained[layout, sharding_type] for layout in ("split", "packed"))
        assert_equal(packed.before, split.before)
        assert len(packed.logits) == STEPS
        torch.testing.assert_close(packed.logits, split.logits, rtol=0, atol=atol)
        torch.testing.assert_close(packed.after, split.after, rtol=0, atol=atol)
        # The pipeline distributes the ids of packed tables ahead as well.
        assert packed.pipelined_modules == split.pipelined_modules == 1


@ON_MESHES
def test_packed_training_equals_the_equations_trained_by_hand(mesh: tuple[int, int], optimizer: str):
    before = results(mesh, optimizer)[0].trained["split", "table_wise"].before
    config = config_of_case("split", optimizer, "table_wise")
    expected = train_by_hand(before, batches_of_ranks(STEPS, mesh[0]), COLUMNS.labels, config)
    for rank, sharding_type in itertools.product(results(mesh, optimizer), TYPES):
        for name, weight in rank.trained["packed", sharding_type].after.items():
            # Rounding of weights of up to 2 in sums of another order; see test_sharded.
            torch.testing.assert_close(
                weight, expected[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
            assert (weight - before[name]).abs().max() > 2e-4, name


@ON_MESHES
def test_one_task_leaves_the_others_columns_and_their_states_alone(mesh: tuple[int, int], optimizer: str):
    groups, kinds_of_optimizer = (
        groups_of(COLUMNS.labels),
        ("weights",) if optimizer == "sgd" else ("weights", "states"),
    )
    for sharding_type, (i, task) in itertools.product(TYPES, enumerate(COLUMNS.labels)):
        tables, changed = set(), set()
        for rank in results(mesh, optimizer):
            for table, kinds in rank.changed[sharding_type][i].items():
                tables.add(table)
                changed |= {(table, kind) for kind in kinds}
        assert tables == {f"{group}/{feature}" for group in groups for feature in COLUMNS.sparse}
        # Its own and the shared columns change, and with them their states.
        assert changed == {
            (f"{group}/{feature}", kind)
            for group in (task, "shared")
            for feature in COLUMNS.sparse
            for kind in kinds_of_optimizer
        }, sharding_type


def test_weights_and_states_that_change_the_layout_train_on_bit_for_bit(resumed):
    for rank in resumed:
        assert len(rank.resumed) == 2 + len(TYPES)
        for case, weights in rank.resumed.items():
            assert_equal(weights, rank.uninterrupted[case.split()[0]])


def test_states_that_do_not_fit_are_refused_in_one_sentence(resumed):
    for rank in resumed:
        name = f"optimizer.state.model.{TABLES}.finish/"
        message = rank.messages["rowwise_adagrad"]
        assert f"rowwise_adagrad does not fit: {name}" in message
        assert "a row-wise optimizer state is one number for all columns of a row" in message
        assert message.count("\n") == 0
        assert f"adagrad does not fit: {name}" in rank.messages["adagrad"]
        assert "was not saved" in rank.messages["adagrad"]


@pytest.mark.parametrize("name", ["rowwise_adagrad", "lamb", "partial_rowwise_adam"])
def test_optimizers_that_couple_the_elements_of_a_row_are_refused_for_packed_tables(name: str):
    apply_sparse_optimizer(build_model(MODEL, COLUMNS), SparseOptimizerConfig(name))
    with pytest.raises(
        UserError, match=r"in the packed table finish\+like\+shared/uid .*choose --sparse\.name adagrad"
    ):
        apply_sparse_optimizer(build_model(PACKED, COLUMNS), SparseOptimizerConfig(name))


def test_a_packed_table_has_one_learning_rate():
    equal = {"finish": 0.5, "like": 0.5, "shared": 0.5}
    for name in ("sgd", "adagrad", "adam"):
        apply_sparse_optimizer(build_model(PACKED, COLUMNS), SparseOptimizerConfig(name, group_learning_rates=equal))
        with pytest.raises(
            UserError, match=r"one learning rate: finish 0\.02, like 0\.5, shared 0\.02; make them equal"
        ):
            apply_sparse_optimizer(
                build_model(PACKED, COLUMNS), SparseOptimizerConfig(name, group_learning_rates={"like": 0.5})
            )
    with pytest.raises(UserError, match="group 'likes'; the groups are finish, like, shared"):
        apply_sparse_optimizer(
            build_model(PACKED, COLUMNS), SparseOptimizerConfig("sgd", group_learning_rates={"likes": 0.5})
        )


def test_a_tables_name_says_whose_columns_it_holds_in_their_order():
    assert split_columns("like+a/b+c", 8) == {"like/b+c": range(4), "a/b+c": range(4, 8)}
    assert split_columns("like/uid", 6) == {"like/uid": range(6)}
    # The names of another stack.
    assert split_columns("t_uid+x", 6) == {"t_uid+x": range(6)}
    for table, width in (("a+b+c/uid", 16), ("a+a/uid", 16)):
        with pytest.raises(UserError, match=r"cannot hold .* side by side in 16 columns"):
            split_columns(table, width)
    with pytest.raises(UserError, match=r"a task cannot be called 'a\+b'"):
        groups_of(["a+b"])


def test_tables_may_be_packed_in_part_and_serve_several_features():
    """The features x and y share the first table, and x has another; the task b is split, a and shared are packed."""
    tables = {"shared+a/item": (8, ["x", "y"]), "b/item": (4, ["x", "y"]), "b+shared+a/user": (12, ["u"])}
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=name, num_embeddings=9, embedding_dim=dim, feature_names=features)
            for name, (dim, features) in tables.items()
        ]
    )
    features = KeyedJaggedTensor.from_lengths_sync(
        ["x", "y", "u"], torch.tensor([3, 8, 1, 4, 0, 0, 2]), torch.tensor([1, 2, 1, 0, 1, 2])
    )
    arch = SparseArch(collection, ["a", "b", "shared"])
    pooled = arch(features)
    item, b_item, user = (collection.embedding_bags[name].weight for name in tables)
    expected = {
        "a": [(item[:, 4:], "x"), (item[:, 4:], "y"), (user[:, 8:], "u")],
        "b": [(b_item, "x"), (b_item, "y"), (user[:, :4], "u")],
        "shared": [(item[:, :4], "x"), (item[:, :4], "y"), (user[:, 4:8], "u")],
    }
    for group, lookups in expected.items():
        bags = [
            embedding_bag(
                features[feature].values(), weight, features[feature].offsets(), mode="sum", include_last_offset=True
            )
            for weight, feature in lookups
        ]
        assert torch.equal(pooled[group], torch.cat(bags, dim=1))
        assert arch.out_features[group] == 12
