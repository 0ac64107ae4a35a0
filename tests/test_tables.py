"""What a table is, from schema.json to evaluation, and that its names are known in one place."""

import ast
import contextlib
import dataclasses
import io
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.modules.embedding_configs import PoolingType

import stem_torchrec
from stem_torchrec.config import ShardingConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature, load_schema, save_schema
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.planner import plan_sharding, planner_constraints
from stem_torchrec.sharding.sharder import make_sharder
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import (
    SparseArch,
    TableTensor,
    build_collection,
    check_plan,
    embedding_bag_configs,
    table_configs,
    table_of,
    tables_among,
)
from stem_torchrec.training.nonfinite import keep_batch
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.run_evaluation import EvaluateConfig, evaluate_run
from stem_torchrec.training.trainer import train
from stem_torchrec.transfer.convert_layout import ConvertConfig, convert_run
from stem_torchrec.transfer.weight_source import CheckpointWeights

from distributed import run_ranks
from logs import WEIGHTED, reader_of, weighted_table, write_split
from reference import logits_by_formula
from runs import this_process

FEATURES = [
    SparseFeature("uid", 20),
    SparseFeature("tags", 30, pooling="mean", weights="tag_weights", embedding_dim=8),
]


def parse_strings(path: Path) -> list[str]:
    """What a module names in code: string constants but docstrings, attributes, and the types that isinstance asks."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.append(node.value)
        elif isinstance(node, ast.Attribute):
            found.append(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            found.append(f"isinstance {ast.unparse(node.args[1])}")
    return found


def test_only_tables_knows_how_torchrec_names_tables_and_which_modules_hold_them():
    package = Path(stem_torchrec.__file__).parent
    knows = {}
    for path in package.rglob("*.py"):
        names = [
            name
            for name in parse_strings(path)
            if name == "embedding_bags"
            or "embedding_bags." in name
            or (name.startswith("isinstance") and "EmbeddingBagCollection" in name)
        ]
        if names:
            knows[path.relative_to(package).parts[0]] = names
    assert knows.keys() == {"tables"}


def test_a_tensor_of_a_table_is_read_from_its_name_and_named_again():
    prefix = "model.sparse_arch.embedding_bag_collection.embedding_bags."
    weight = TableTensor(prefix, "like/uid")
    assert TableTensor.parse(f"{prefix}like/uid.weight") == weight
    assert weight.name == f"{prefix}like/uid.weight"
    state = TableTensor(prefix, "like/uid", "momentum1")
    # A fused optimizer repeats the table.
    assert TableTensor.parse(f"{prefix}like/uid.weight.like/uid.momentum1") == state
    assert TableTensor.parse(state.name) == state
    assert TableTensor.parse("model.towers.like.0.weight") is None
    assert table_of(weight.name) == "like/uid"
    assert table_of(state.name) is None
    assert tables_among(["m.embeddings.t_b.weight", weight.name, "m.embedding_bags.t_a.weight", "m.over.weight"]) == [
        "like/uid",
        "t_a",
        "t_b",
    ]


def test_a_feature_gives_its_tables_their_pooling_and_width_in_both_layouts():
    sizes = {}
    for layout in ("split", "packed"):
        for config in embedding_bag_configs(FEATURES, ["like", "shared"], embedding_dim=4, layout=layout):
            sizes[config.name] = config.embedding_dim, config.pooling.value
    assert sizes == {
        "like/uid": (4, "SUM"),
        "like/tags": (8, "MEAN"),
        "shared/uid": (4, "SUM"),
        "shared/tags": (8, "MEAN"),
        "like+shared/uid": (8, "SUM"),
        "like+shared/tags": (16, "MEAN"),
    }
    with pytest.raises(UserError, match="the embedding dimension of 'tags' is 6, but must be a multiple of 4"):
        embedding_bag_configs([dataclasses.replace(FEATURES[1], embedding_dim=6)], ["like"])


def test_a_collection_is_weighted_if_a_feature_is():
    assert build_collection(FEATURES, ["like"]).is_weighted()
    assert not build_collection(FEATURES[:1], ["like"]).is_weighted()


def test_the_mean_of_a_users_own_collection_is_its_sum_divided_by_the_number_of_ids():
    """As TorchRec pools without weights, which it cannot pool by the mean with weights."""
    configs = embedding_bag_configs(FEATURES, ["like", "shared"], embedding_dim=4, std=1.0)
    collection = EmbeddingBagCollection(tables=configs)
    features = KeyedJaggedTensor(["tags", "uid"], torch.tensor([3, 7, 7, 1]), lengths=torch.tensor([3, 0, 1, 0]))
    arch = SparseArch(collection, ["shared", "like"])
    pooled, expected = arch(features), collection(features)
    for group in ("shared", "like"):
        by_torchrec = [expected[f"uid@{group}/uid"], expected[f"tags@{group}/tags"]]
        # Three terms and a division.
        torch.testing.assert_close(pooled[group], torch.cat(by_torchrec, dim=1), rtol=1e-6, atol=1e-6)
        assert pooled[group][1].eq(0).all()
    # The user's collection stays as it was, and shares its weights.
    assert [config.pooling for config in collection.embedding_bag_configs()].count(PoolingType.MEAN) == 2
    assert {config.pooling for config in table_configs(arch)} == {PoolingType.SUM}
    assert set(map(id, arch.parameters())) == set(map(id, collection.parameters()))


class Foreign(nn.Module):
    """A model of another stack, which lets TorchRec pool by the mean."""

    def __init__(self, *, weighted: bool) -> None:
        super().__init__()
        config = EmbeddingBagConfig(
            name="t_a", num_embeddings=16, embedding_dim=8, feature_names=["a"], pooling=PoolingType.MEAN
        )
        self.tables = EmbeddingBagCollection(tables=[config], is_weighted=weighted, device=torch.device("meta"))

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.tables(features).values()


MEANS = [(False, "grid_shard"), (True, "row_wise"), (False, "row_wise"), (True, "table_wise")]


def outcome_of(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "accepted"


def refuse_means() -> tuple[dict[str, str], list[set[str]]]:
    """What planning, sharding and checking answer to a mean of TorchRec's own, and the types that may be planned."""
    outcomes, topology, cpu = {}, topology_here(this_process()), torch.device("cpu")
    for weighted, kind in MEANS:
        constraints = {"t_a": ParameterConstraints(sharding_types=[kind])}
        planner = EmbeddingShardingPlanner(topology=topology, batch_size=4, constraints=constraints)
        for input_dist in ("stock", "once"):
            model, sharder = Foreign(weighted=weighted), make_sharder(input_dist=input_dist)
            placements, plan = {"t_a": Placement(kind)}, planner.collective_plan(model, [sharder])
            calls = {
                "plan": partial(plan_sharding, model, topology=topology, batch_size=4, placements=placements),
                "check": partial(check_plan, model, plan),
                "shard": partial(DistributedModelParallel, model, device=cpu, plan=plan, sharders=[sharder]),
            }
            case = f"{'weighted ' if weighted else ''}{kind}"
            outcomes |= {f"{case} {input_dist} {name}": outcome_of(call) for name, call in calls.items()}
    planned = [
        planner_constraints(table_configs(Foreign(weighted=w)), topology=topology, weighted=w) for w in (False, True)
    ]
    return outcomes, [set(constraints["t_a"].sharding_types or ()) for constraints in planned]


def test_a_mean_that_torchrec_gets_wrong_is_refused_and_not_planned():
    for outcomes, (planned, planned_weighted) in run_ranks(2, refuse_means):
        for input_dist, where in itertools.product(("stock", "once"), ("plan", "check", "shard")):
            assert outcomes.pop(f"grid_shard {input_dist} {where}").startswith(
                "the table 't_a' pools by the mean, which TorchRec gets wrong under grid_shard; choose another"
            )
            message = outcomes.pop(f"weighted row_wise {input_dist} {where}")
            assert "'t_a' pools weighted ids by the mean, which TorchRec gets wrong under row_wise" in message
        assert set(outcomes.values()) == {"accepted"}
        assert planned - planned_weighted == {"row_wise", "table_row_wise"}
        assert "grid_shard" not in planned


def run_weighted(folder: Path) -> None:
    """Trains on a log with weights, means and widths, converts the run to packed, and evaluates both."""
    process = this_process()
    if process.is_first:
        for split, rows in (("train", 600), ("valid", 101)):
            write_split(folder / "log", weighted_table(rows), [[rows // 2, rows - rows // 2]], split=split)
        save_schema(WEIGHTED, str(folder / "log"))
    torch.distributed.barrier()
    config = tiny()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, path=str(folder / "log"), batch_size=30),
        model=dataclasses.replace(config.model, embedding_std=0.5),
        sharding=ShardingConfig(type="grid_shard", input_dist="once"),
        output_dir=str(folder / "split"),
    )
    train(config, process)
    with contextlib.redirect_stdout(io.StringIO()):
        convert_run(ConvertConfig(run=str(folder / "split"), out=str(folder / "packed")), process)
    for run in ("split", "packed"):
        evaluate_run(EvaluateConfig(run=str(folder / run), predictions=str(folder / f"{run}-predictions")), process)


def test_weights_means_and_widths_work_from_the_schema_to_evaluation_and_conversion(tmp_path: Path):
    run_ranks(2, run_weighted, tmp_path)
    split, packed = (pq.read_table(tmp_path / f"{run}-predictions").sort_by("row") for run in ("split", "packed"))
    assert packed.equals(split)
    assert load_schema(str(tmp_path / "packed")) == WEIGHTED

    saved = CheckpointWeights(tmp_path / "split")
    weights = {name: torch.empty(size) for name, size in saved.sizes.items()}
    saved.read(list(weights.items()))
    weights = {name.removeprefix("model.model."): weight for name, weight in weights.items()}
    columns = Columns.select(WEIGHTED)
    [item] = reader_of(tmp_path / "log", WEIGHTED, split="valid", batch_size=101, training=False)
    logits = logits_by_formula(weights, item.batch, columns.labels, tiny().model, columns)
    for i, task in enumerate(columns.labels):
        predicted = torch.tensor(split[f"prediction/{task}"].to_pylist()).logit()
        # float32 sums of some dozen terms of size 1.
        torch.testing.assert_close(predicted, logits[:, i].double(), rtol=1e-5, atol=1e-5, check_dtype=False)
        assert logits[:, i].std() > 0.01


def test_a_log_with_other_tables_is_not_one_like_that_of_the_run():
    columns = Columns.select(WEIGHTED)
    tags = dataclasses.replace(columns.sparse["tags"], pooling="sum", num_embeddings=9)
    other = dataclasses.replace(columns, sparse={**columns.sparse, "tags": tags}, group=None)
    assert columns.differences(columns) == []
    assert other.differences(columns) == [
        "num_embeddings of tags is 9, not 10",
        "pooling of tags is 'sum', not 'mean'",
        "group is None, not 'user'",
    ]


def test_a_batch_that_is_kept_has_its_weights(tmp_path: Path):
    write_split(tmp_path, weighted_table(20))
    [batch] = reader_of(tmp_path, WEIGHTED, batch_size=20, shuffle_rows=0)
    kept = pq.read_table(keep_batch(batch, tmp_path, Columns.select(WEIGHTED), name="step-1"))
    for name in ("tags", "tag_weights"):
        assert kept[name].to_pylist() == [bag or [] for bag in weighted_table(20)[name].to_pylist()]
    assert len(kept["place_weight"].combine_chunks().flatten()) == 15
