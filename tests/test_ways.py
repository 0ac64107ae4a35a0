"""The tables, the loop and the evaluation serve another model: TorchRec's DLRM, on its own batches."""

import dataclasses

import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology

from stem_torchrec.metrics.multi_task import TaskMetrics
from stem_torchrec.models.loss import MultiTaskTrain, labels_like
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.once import OnceSharder
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.planner import planner_constraints
from stem_torchrec.sharding.shard import AllTypesSharder
from stem_torchrec.tables import embedding_bag_configs, table_group
from stem_torchrec.training.evaluation import evaluate, exposures_of, predict
from stem_torchrec.training.loop import fit

from distributed import run_ranks
from dlrm import EMBEDDINGS, build_dlrm, shard_dlrm, their_batches
from reference import COLUMNS

STEPS = 6
CPU = torch.device("cpu")


def batches_of(epoch: int) -> list:
    """The batches of an epoch on this rank."""
    return their_batches(range(100 * dist.get_rank() + 3 * epoch, 100 * dist.get_rank() + 3 * epoch + 3))


@dataclasses.dataclass
class Trained:
    by_torchrec: dict[str, Tensor]
    """Weights after training with TorchRec's loss and loop."""
    by_fit: dict[str, Tensor]
    """Weights after training with MultiTaskTrain and fit."""
    epochs: list[int]
    kept: list[tuple[int, int]]
    metrics: dict[str, TaskMetrics]
    predicted: tuple[list[float], list[int]]
    too_short: str
    pipelined_modules: int


def train_dlrm() -> Trained:
    """Trains the same DLRM with TorchRec's loss and loop, and with MultiTaskTrain and fit."""
    by_torchrec, pipeline = shard_dlrm(build_dlrm())
    iterator = iter([batch for epoch in (0, 1) for batch in batches_of(epoch)])
    for _ in range(STEPS):
        pipeline.progress(iterator)

    by_fit, pipeline = shard_dlrm(build_dlrm(loss=MultiTaskTrain))
    epochs, kept = [], []

    def batches(epoch: int) -> list:
        epochs.append(epoch)
        return batches_of(epoch)

    def evaluate_it() -> dict[str, TaskMetrics]:
        exposures = exposures_of(
            batches_of(7 + dist.get_rank()), groups=lambda batch: batch.sparse_features["uid"].values() % 2
        )
        return evaluate(pipeline, by_fit, exposures, tasks=["click"], device=CPU)

    fit(
        pipeline,
        batches,
        tasks=["click"],
        steps=STEPS,
        steps_per_epoch=3,
        evaluate=evaluate_it,
        eval_every=2,
        keep=lambda step, metrics: kept.append((step, metrics["click"].rows)),
    )
    logits, labels = [], []

    def consume(item, batch_logits, batch_labels) -> None:
        logits.extend(batch_logits[:, 0].tolist())
        labels.extend(batch_labels[:, 0].tolist())

    predict(pipeline, by_fit, exposures_of(batches_of(7 + dist.get_rank())), consume)
    weights = [{name: w.clone() for name, w in tables_of(model).items()} for model in (by_torchrec, by_fit)]
    metrics, pipelined = evaluate_it(), len(pipeline._pipelined_modules)
    with pytest.raises(UserError) as error:
        fit(pipeline, batches_of, tasks=["click"], steps=4)
    return Trained(*weights, epochs, kept, metrics, (logits, labels), str(error.value), pipelined)


def tables_of(model) -> dict[str, Tensor]:
    """The shards of the tables on this rank, and the dense weights."""
    return {
        f"{name} {i}": part
        for name, weight in model.state_dict().items()
        for i, part in enumerate(
            [s.tensor for s in weight.local_shards()] if hasattr(weight, "local_shards") else [weight]
        )
    }


def plan_row_wise() -> tuple[str, str]:
    """The sharding type of a table that must be row_wise, and the planner's error with TorchRec's own sharder."""
    tables = embedding_bag_configs(list(COLUMNS.sparse.values()), ["finish", "like", "shared"], embedding_dim=8)
    topology = Topology(world_size=2, local_world_size=2, compute_device="cpu")
    constraints = planner_constraints(tables, topology=topology, placements={"shared/uid": Placement("row_wise")})
    model = build_dlrm(tables=tables)
    with pytest.raises(RuntimeError) as error:
        EmbeddingShardingPlanner(topology=topology, constraints=constraints).plan(
            model, [EmbeddingBagCollectionSharder()]
        )
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints)
    plan = planner.collective_plan(model, [AllTypesSharder()])
    sharded, pipeline = shard_dlrm(model, plan, sharder=AllTypesSharder())
    pipeline.progress(iter(batches_of(0)))
    return sharded.plan.plan[EMBEDDINGS]["shared/uid"].sharding_type, str(error.value)


def test_a_plan_that_cuts_rows_on_cpu_needs_the_sharder_of_all_types():
    for kind, error in run_ranks(2, plan_row_wise):
        assert kind == "row_wise"
        assert error.startswith("No available sharding type and compute kernel combination")


def train_both_tables() -> tuple[dict[str, list[str]], list[Tensor], list[Tensor]]:
    """Sharding types by group under TorchRec's planner, and logits with the stock sharder and with OnceSharder."""
    features = list(COLUMNS.sparse.values())
    tables = embedding_bag_configs(features, ["finish", "like", "shared"], embedding_dim=8, std=0.1)
    topology = Topology(world_size=2, local_world_size=2, compute_device="cpu")
    planner = EmbeddingShardingPlanner(topology=topology, constraints=planner_constraints(tables, topology=topology))
    model = build_dlrm(tables=tables)
    plan = planner.collective_plan(model, [OnceSharder()])
    logits = []
    for sharder in (EmbeddingBagCollectionSharder(), OnceSharder()):
        sharded, pipeline = shard_dlrm(build_dlrm(tables=tables), plan, sharder=sharder)
        iterator = iter(batches_of(0))
        logits.append([pipeline.progress(iterator)[1] for _ in range(3)])
    types: dict[str, list[str]] = {}
    for table, how in sharded.plan.plan[EMBEDDINGS].items():
        types.setdefault(table_group(table), []).append(how.sharding_type)
    return types, *logits


def test_tables_of_groups_train_beside_a_dlrms_under_its_planner_with_ids_sent_once():
    for types, stock, once in run_ranks(2, train_both_tables):
        assert {group: len(kinds) for group, kinds in types.items()} == {
            **dict.fromkeys(["finish", "like", "shared"], 2),
            **dict.fromkeys(["t_uid", "t_tags"], 1),
        }
        assert not any("data_parallel" in types[group] for group in ("finish", "like", "shared"))
        assert all(torch.equal(a, b) for a, b in zip(stock, once, strict=True))
        assert not torch.equal(stock[0], stock[2])


@pytest.fixture(scope="module")
def trained() -> list[Trained]:
    return run_ranks(2, train_dlrm)


def test_fit_trains_torchrecs_dlrm_as_its_own_loss_and_loop_do(trained: list[Trained]):
    for rank in trained:
        assert rank.pipelined_modules == 1  # Tracing succeeded, so that ids are exchanged ahead.
        assert rank.by_fit.keys() == rank.by_torchrec.keys()
        for name, weight in rank.by_fit.items():
            # DLRMTrain takes the mean at once, MultiTaskTrain the sum and then the mean.
            torch.testing.assert_close(weight, rank.by_torchrec[name], rtol=0, atol=1e-6)
    before = dict(build_dlrm().named_parameters())[f"{EMBEDDINGS}.embedding_bags.t_tags.weight"]
    after = trained[1].by_fit[f"{EMBEDDINGS}.embedding_bags.t_tags.weight 0"]
    assert (after - before).abs().max() > 1e-4


def test_every_epoch_gets_its_batches_and_evaluations_come_between(trained: list[Trained]):
    for rank in trained:
        assert rank.epochs == [0, 1]
        # 3 batches of 12 rows from either rank; without early stopping every evaluation is kept.
        assert rank.kept == [(2, 72), (4, 72), (6, 72)]


def test_metrics_of_plain_batches_are_those_of_all_ranks_rows(trained: list[Trained]):
    logits = [z for rank in trained for z in rank.predicted[0]]
    labels = [y for rank in trained for y in rank.predicted[1]]
    for rank in trained:
        assert rank.metrics["click"].auc == pytest.approx(roc_auc_score(labels, logits), abs=1e-12)
        assert rank.metrics["click"].gauc_groups == 2


def test_batches_that_end_before_their_epoch_are_named(trained: list[Trained]):
    assert trained[0].too_short.startswith("the batches of epoch 0 end 1 steps too early")


def test_labels_of_any_type_take_the_shape_of_the_logits():
    assert labels_like(torch.zeros(3, 1), torch.tensor([0, 1, 1])).tolist() == [[0.0], [1.0], [1.0]]
    assert labels_like(torch.zeros(1, 2), torch.tensor([[True, False]])).tolist() == [[1.0, 0.0]]
    for logits, labels in [((3,), (3,)), ((3, 2), (3,)), ((3, 2), (2, 3)), ((3, 1), (4,))]:
        with pytest.raises(UserError, match=rf"logits are \({logits[0]},.* labels \({labels[0]},.* \(rows, tasks\)"):
            labels_like(torch.zeros(logits), torch.zeros(labels))
