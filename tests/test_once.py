"""Ids sent once per rank: the same bits as TorchRec's own input distribution, and a part of its traffic."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.types import ShardingPlan
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from stem_torchrec.config import ShardingConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.sharding.once import OnceCollection, falls_back
from stem_torchrec.sharding.placement import FUSED_TYPES, Placement
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.sharder import make_sharder
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import sharded_collections

from common.traffic import Traffic, count_traffic
from distributed import run_ranks
from reference import COLUMNS
from runs import Run, batches_of_ranks, config_of, of_this_rank, this_process

pytestmark = pytest.mark.stack

OPTIMIZERS = ["sgd", "adagrad", "rowwise_adagrad"]
STEPS = 10
RULES = {
    "a rank without tables": ("*=table_wise:rank=0",),
    "all types": (
        "finish/uid=column_wise:rank=1,0",
        "finish/tags=table_row_wise:rank=0",
        "like/uid=row_wise",
        "like/tags=data_parallel",
        "shared/*=table_wise:rank=1",
    ),
}


@dataclass
class Trained:
    weights: dict[str, Tensor]
    states: dict[str, list[Tensor]]
    logits: list[Tensor]
    pipelined: int
    once: list[bool]
    traffic: Traffic


def train_once(optimizer: str, sharding: ShardingConfig, steps: int = STEPS, columns: Columns = COLUMNS) -> Trained:
    config = replace(config_of(optimizer, "auto", learning_rate=1.0), sharding=sharding)
    run = Run.build(config, columns)
    batches = of_this_rank(batches_of_ranks(steps, dist.get_world_size(), missing=0.3))
    if columns is not COLUMNS:
        batches = [replace(batch, labels=batch.labels[:, :1].repeat(1, len(columns.labels))) for batch in batches]
    with count_traffic() as traffic:
        outputs = run.train(batches)
    modules = [module for _, module in sharded_collections(run.model)]
    return Trained(
        run.weights(),
        run.table_bits(),
        [logits for _, logits in outputs],
        len(run.pipeline._pipelined_modules),
        [isinstance(module, OnceCollection) for module in modules],
        traffic,
    )


PLANS = {name: ShardingConfig(type=name) for name in FUSED_TYPES} | {
    name: ShardingConfig(rules=rules) for name, rules in RULES.items()
}
Results = dict[tuple[str, str, str], Trained]


def train_all(optimizers: Sequence[str]) -> Results:
    return {
        (optimizer, plan, input_dist): train_once(optimizer, replace(PLANS[plan], input_dist=input_dist))
        for optimizer, plan, input_dist in itertools.product(optimizers, PLANS, ("stock", "once"))
    }


@pytest.fixture(scope="module")
def trained() -> list[Results]:
    return run_ranks(2, train_all, ["adagrad"], timeout=300)


def assert_once_is_stock(rank: Results) -> None:
    for (optimizer, plan, input_dist), once in rank.items():
        if input_dist == "stock":
            continue
        stock = rank[optimizer, plan, "stock"]
        assert (stock.once, once.once) == ([False], [True])
        assert len(once.logits) == STEPS
        assert all(map(torch.equal, once.logits, stock.logits)), plan
        assert once.weights.keys() == stock.weights.keys()
        for name, weight in once.weights.items():
            assert torch.equal(weight, stock.weights[name]), (plan, name)
        assert once.states.keys() == stock.states.keys()
        for table, pieces in once.states.items():
            assert all(map(torch.equal, pieces, stock.states[table])), (plan, table)


def test_once_learns_the_same_bits_as_stock(trained: list[Results]):
    for rank in trained:
        assert_once_is_stock(rank)


@pytest.mark.long
@pytest.mark.parametrize("mesh", [(2, 2), (4, 2)], ids="{0[0]} ranks, {0[1]} on a host".format)
def test_once_learns_the_same_bits_as_stock_with_every_optimizer_on_more_ranks(mesh: tuple[int, int]):
    # A global batch of 12 rows and a table of 7 rows leave no rank of these without rows.
    for rank in run_ranks(mesh[0], train_all, OPTIMIZERS, ranks_per_host=mesh[1], timeout=900):
        assert_once_is_stock(rank)


def test_the_pipeline_distributes_ids_ahead_that_are_sent_once(trained: list[Results]):
    for rank in trained:
        assert {result.pipelined for result in rank.values()} == {1}


def test_id_bytes_are_those_of_stock_divided_by_the_tables_of_a_feature(trained: list[Results]):
    for plan in ("row_wise", "a rank without tables"):
        sent = 0
        for rank in trained:
            stock, once = rank["adagrad", plan, "stock"].traffic, rank["adagrad", plan, "once"].traffic
            # Two tasks and shared: three tables of each feature, all on the same ranks.
            assert stock.ids == 3 * once.ids
            assert (stock.embeddings, stock.gradients) == (once.embeddings, once.gradients)
            sent += once.ids
        assert sent > 0


def train_eight_tasks() -> dict[tuple[int, str], Traffic]:
    traffic = {}
    for tasks, plan in itertools.product((1, 8), ("row_wise", "table_wise:rank=1", "table_row_wise:rank=0")):
        columns = replace(COLUMNS, labels=tuple(f"task{i}" for i in range(tasks)))
        sharding = ShardingConfig(rules=(f"*={plan}",), input_dist="once")
        traffic[tasks, plan] = train_once("sgd", sharding, 2, columns).traffic
    return traffic


def test_eight_tasks_send_the_ids_of_one():
    for rank, traffic in enumerate(run_ranks(2, train_eight_tasks)):
        for plan in ("row_wise", "table_wise:rank=1", "table_row_wise:rank=0"):
            one, eight = traffic[1, plan], traffic[8, plan]
            assert one.ids == eight.ids
            assert one.ids > 0 or (plan, rank) == ("table_wise:rank=1", 1)
            # Nine tables instead of two.
            assert eight.embeddings * 2 == one.embeddings * 9


class Sums(nn.Module):
    """A foreign model: tables with several features, weighted ids, other names than ours."""

    def __init__(self, pooling: PoolingType) -> None:
        super().__init__()
        configs = [
            EmbeddingBagConfig(
                name=f"t{i}", num_embeddings=rows, embedding_dim=8, feature_names=features, pooling=pooling
            )
            for i, (rows, features) in enumerate([(30, ["b", "a"]), (30, ["a"]), (50, ["a", "c"]), (30, ["c", "a"])])
        ]
        self.tables = EmbeddingBagCollection(
            tables=configs, is_weighted=pooling == PoolingType.SUM, device=torch.device("meta")
        )

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.tables(features).values()


def foreign_batches() -> list[KeyedJaggedTensor]:
    generator = torch.Generator().manual_seed(dist.get_rank())
    batches = []
    for longest in (3, 0, 2):  # The second has no ids at all.
        lengths = torch.randint(0, longest + 1, (3 * 4,), generator=generator)
        ids = torch.randint(30, (int(lengths.sum()),), generator=generator)
        weights = torch.rand(len(ids), generator=generator)
        batches.append(KeyedJaggedTensor(["a", "b", "c"], ids, weights=weights, lengths=lengths))
    return batches


def look_up_foreign() -> dict[tuple[str, str], list[Tensor]]:
    pooled = {}
    for (name, pooling), input_dist in itertools.product(
        [
            ("row_wise", PoolingType.SUM),
            ("table_wise", PoolingType.SUM),
            ("table_wise", PoolingType.MEAN),
            ("row_wise", PoolingType.MEAN),
        ],
        ("stock", "once"),
    ):
        model = Sums(pooling)
        placements = {f"t{i}": Placement(name) for i in range(4)}
        sharder = make_sharder(input_dist=input_dist)
        plan: ShardingPlan = plan_sharding(
            model, topology=topology_here(this_process()), batch_size=4, placements=placements, sharder=sharder
        ).sharding_plan
        torch.manual_seed(0)
        sharded = DistributedModelParallel(model, device=torch.device("cpu"), plan=plan, sharders=[sharder])
        [module] = [m for m in sharded.modules() if isinstance(m, ShardedEmbeddingBagCollection)]
        mean_by_rows = (name, pooling) == ("row_wise", PoolingType.MEAN)
        assert isinstance(module, OnceCollection) == (input_dist == "once" and not mean_by_rows)
        outputs = [sharded(features) for features in foreign_batches()]
        sum(output.sum() for output in outputs).backward()
        pooled[f"{name} {pooling.value}", input_dist] = [
            *(output.detach() for output in outputs),
            *(weight.local_shards()[0].tensor for weight in module.state_dict().values() if weight.local_shards()),
        ]
    return pooled


def test_any_collection_gets_the_same_embeddings_once_as_stock():
    for rank in run_ranks(2, look_up_foreign):
        for (name, input_dist), tensors in rank.items():
            assert len(tensors) >= 3
            assert all(map(torch.equal, tensors, rank[name, "stock"])), (name, input_dist)
        assert rank["row_wise SUM", "once"][0].abs().sum() > 0


def test_mean_pooling_under_row_types_falls_back_to_stock_and_is_named():
    configs = [
        EmbeddingBagConfig(name=name, num_embeddings=9, embedding_dim=4, feature_names=["a"], pooling=pooling)
        for name, pooling in (("mean", PoolingType.MEAN), ("sum", PoolingType.SUM))
    ]
    assert falls_back(configs, {"mean": "row_wise", "sum": "row_wise"}) == ["mean"]
    assert falls_back(configs, {"mean": "column_wise", "sum": "row_wise"}) == []
