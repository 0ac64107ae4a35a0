"""Weights on disk outlive the plan, the world size and the layout that they were saved under."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from stem_torchrec.checkpoints.storage import IoPathFileSystem
from stem_torchrec.checkpoints.weights import find_weights, load_weights, save_weights
from stem_torchrec.data.files import Columns
from stem_torchrec.models.stem import STEMOptions
from stem_torchrec.runtime.errors import UserError

from distributed import run_ranks
from reference import COLUMNS, sparse_features
from runs import MODEL, Run, batches_of_ranks, config_of, of_this_rank

Weights = dict[str, Tensor]
PACKED = dataclasses.replace(MODEL, layout="packed")
DAMAGED = {
    "no shards": "[Errno 2] No such file or directory",
    "cut off": "pickle data was truncated",
    "garbage": "invalid load key, 'n'",
}
"""What is wrong with weights, and the reason in the error."""
SAVED = {
    "short": {"row_wise": MODEL, "column_wise": PACKED},
    "full": {"table_wise": MODEL, "row_wise": MODEL, "data_parallel": MODEL, "column_wise": PACKED},
}
"""Models by the sharding type that they are saved under."""
LOADED = {
    "short": [("table_wise", MODEL), ("data_parallel", MODEL), ("grid_shard", PACKED)],
    "full": [
        *((sharding_type, MODEL) for sharding_type in ("table_wise", "row_wise", "data_parallel", "column_wise")),
        *((sharding_type, PACKED) for sharding_type in ("row_wise", "grid_shard", "data_parallel")),
    ],
}
"""Sharding types that each of them is loaded under, with the layout."""


def save_all(folder: Path, matrix: str) -> dict[str, Weights]:
    """Trains, saves, trains again and saves again; returns the weights saved last, by sharding type."""
    saved = {}
    for sharding_type, model in SAVED[matrix].items():
        run = Run.build(config_of("adagrad", sharding_type, model=model))
        for batch in of_this_rank(batches_of_ranks(2, dist.get_world_size())):
            run.train([batch])
            if dist.get_rank() == 0:  # Left by a run that was killed while it saved.
                (folder / f"{sharding_type}.new").mkdir()
                (folder / f"{sharding_type}.new" / "__7_0.distcp").write_bytes(b"half")
            save_weights(run.model, folder / sharding_type)
        saved[sharding_type] = run.weights()
    return saved


def load_all(folder: Path, matrix: str) -> dict[tuple[str, str, str], Weights]:
    """Weights of new models after loading, by the sharding type saved under, and type and layout loaded under."""
    loaded = {}
    for sharding_type, model in LOADED[matrix]:
        run = Run.build(config_of("sgd", sharding_type, model=model))
        for saved_as in SAVED[matrix]:
            # So that the weights differ from those loaded before.
            run.train(of_this_rank(batches_of_ranks(1, dist.get_world_size())))
            load_weights(run.model, folder / saved_as)
            loaded[saved_as, sharding_type, model.layout] = run.weights()
    # The name of a table lists its groups, so packed columns may be in another order.
    run = Run.build(config_of("sgd", "row_wise", model=PACKED), dataclasses.replace(COLUMNS, labels=("like", "finish")))
    for saved_as in SAVED[matrix]:
        load_weights(run.model, folder / saved_as)
        loaded[saved_as, "row_wise", "packed, other order"] = run.weights()
    return loaded


def save_without_memory(folder: Path) -> tuple[str, bool]:
    """Saves weights, and once more while rank 1 has no memory; returns the error, and whether the old ones stay."""
    model = nn.Linear(2, 2)
    save_weights(model, folder)
    if dist.get_rank() == 1:
        pytest.MonkeyPatch().setattr(IoPathFileSystem, "create_stream", lambda *_: torch.empty(2**60))
    with pytest.raises(MemoryError) as error:
        save_weights(model, folder)
    return str(error.value), find_weights(folder) == folder


def test_a_rank_without_memory_for_weights_is_not_a_disk_without_room(tmp_path: Path) -> None:
    for message, old_stays in run_ranks(2, save_without_memory, tmp_path / "best"):
        assert "alloc_cpu" in message
        assert old_stays
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def refusals(folder: Path, others: dict[str, tuple[STEMOptions, Columns]]) -> dict[str, str]:
    """Errors of loading into other models, by name; none of their weights changes."""
    messages = {}
    for name, (model, columns) in others.items():
        run = Run.build(config_of("sgd", "row_wise", model=model), columns)
        before = run.weights()
        try:
            load_weights(run.model, folder / "row_wise")
        except UserError as error:
            messages[name] = str(error)
        assert all(torch.equal(weight, before[key]) for key, weight in run.weights().items())
    run = Run.build(config_of("sgd", "row_wise"))
    for path in ("nothing", *DAMAGED):
        try:
            load_weights(run.model, folder / path)
        except UserError as error:
            messages[path] = str(error)
    return messages


def two_ranks(
    one: Path, two: Path, matrix: str
) -> tuple[dict[str, Weights], dict[tuple[str, str, str], Weights], dict[str, str]]:
    saved = save_all(two, matrix)
    if dist.get_rank() == 0:
        metadata = (two / "row_wise" / ".metadata").read_bytes()
        for name, rest in zip(DAMAGED, (metadata, metadata[: len(metadata) // 2], b"no pickle"), strict=True):
            (two / name).mkdir()
            (two / name / ".metadata").write_bytes(rest)
    dist.barrier()
    return saved, load_all(one, matrix), refusals(two, OTHERS)


OTHERS = {
    "a width": (dataclasses.replace(MODEL, embedding_dim=16), COLUMNS),
    "fewer layers": (dataclasses.replace(MODEL, num_layers=1), COLUMNS),
    "more layers": (dataclasses.replace(MODEL, num_layers=3), COLUMNS),
    "rows of a table": (MODEL, dataclasses.replace(COLUMNS, sparse=sparse_features(uid=5000, tags=8))),
    "a feature": (MODEL, dataclasses.replace(COLUMNS, sparse=sparse_features(uid=5000, tags=7, tab=3))),
    "rows of a packed table": (PACKED, dataclasses.replace(COLUMNS, sparse=sparse_features(uid=5000, tags=8))),
    "a task": (MODEL, dataclasses.replace(COLUMNS, labels=("finish", "share"))),
}


@pytest.fixture(scope="module", params=["short", pytest.param("full", marks=pytest.mark.long)])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """What one and two ranks saved, what they loaded from each other's folders, and the errors."""
    one, two, matrix = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two"), request.param
    [saved_by_one] = run_ranks(1, save_all, one, matrix)
    [(saved_by_two, loaded_by_two, messages), (_, loaded_by_second, other_messages)] = run_ranks(
        2, two_ranks, one, two, matrix
    )
    assert messages == other_messages
    [loaded_by_one] = run_ranks(1, load_all, two, matrix)
    return {
        "matrix": matrix,
        "one to two": (saved_by_one, loaded_by_two),
        "one to two, second rank": (saved_by_one, loaded_by_second),
        "two to one": (saved_by_two, loaded_by_one),
        "messages": messages,
        "files": {str(path.relative_to(two)) for path in two.rglob("*") if path.is_file()},
    }


@pytest.mark.parametrize("way", ["one to two", "one to two, second rank", "two to one"])
def test_weights_load_bit_for_bit_under_any_plan_layout_and_world_size(results, way: str):
    saved, loaded = results[way]
    assert len(loaded) == len(SAVED[results["matrix"]]) * (len(LOADED[results["matrix"]]) + 1)
    for case, weights in loaded.items():
        assert set(weights) == set(saved[case[0]])
        for name, weight in weights.items():
            assert torch.equal(weight, saved[case[0]][name]), (case, name)


def test_saving_leaves_nothing_but_the_newest_weights(results):
    saved = {
        f"{sharding_type}/{name}"
        for sharding_type in SAVED[results["matrix"]]
        for name in (".metadata", "__0_0.distcp", "__1_0.distcp")
    }
    assert results["files"] == {*saved, *(f"{name}/.metadata" for name in DAMAGED)}


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        ("a width", "model.dense_arch.finish.bias is (8,) there and (16,) in this model."),
        ("fewer layers", "model.layers.0.gates.shared.mlp.0.bias is (8,) there and missing in this model."),
        ("more layers", "model.layers.1.gates.shared.mlp.0.bias is missing there and (8,) in this model."),
        ("rows of a table", "embedding_bags.finish/tags.weight is (7, 8) there and (8, 8) in this model."),
        ("rows of a packed table", "embedding_bags.finish/tags.weight is (7, 8) there and (8, 8) in this model."),
        ("a feature", "model.layers.0.experts.finish.0.weight is (1, 24, 16) there and (1, 32, 16) in this model."),
        ("a task", "model.dense_arch.like.bias is (8,) there and missing in this model."),
    ],
)
def test_another_models_weights_are_refused_in_one_sentence(results, other: str, difference: str):
    message = results["messages"][other]
    assert "row_wise are another model's: " in message
    assert message.endswith(difference)


def test_missing_and_damaged_weights_are_refused_in_one_sentence(results):
    assert results["messages"]["nothing"].endswith(
        "nothing holds no weights; a training run writes them at its first evaluation."
    )
    for name, reason in DAMAGED.items():
        assert f"{name} cannot be read: {reason}" in results["messages"][name]
        assert "\n" not in results["messages"][name]
