"""A STEM starts from the tables and the plan of another model, TorchRec's DLRM, on any ranks."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor
from torchrec.distributed.sharding_plan import (
    column_wise,
    construct_module_sharding_plan,
    data_parallel,
    grid_shard,
    row_wise,
    table_row_wise,
    table_wise,
)
from torchrec.distributed.types import CacheParams, EmbeddingModuleShardingPlan, ParameterSharding, ShardingPlan

from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.errors import DamagedError, UserError
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.topology import make_topology
from stem_torchrec.tables import table_configs
from stem_torchrec.transfer import weight_source
from stem_torchrec.transfer.warm_start import placements_like, warm_start

from distributed import run_ranks
from dlrm import EMBEDDINGS, TYPES, build_dlrm, shard_dlrm, their_plan
from reference import COLUMNS, TABLES
from runs import MODEL, Run, config_of

FOUR_RANKS = make_topology(world_size=4, local_world_size=2, device="cpu")
FILLED = {"shared/uid": "t_uid", "shared/tags": "t_tags", "like/uid": "t_uid"}
Weights = dict[str, Tensor]


def dlrm_tables() -> Weights:
    """The tables of TorchRec's DLRM, the same on all ranks."""
    return {
        table: build_dlrm().get_parameter(f"{EMBEDDINGS}.embedding_bags.{table}.weight") for table in FILLED.values()
    }


def dlrm_state(kind: str) -> Weights:
    """The state dict of TorchRec's DLRM on these ranks, sharded by a type."""
    model = build_dlrm()
    return shard_dlrm(model, their_plan(model, kind))[0].state_dict()


def save_dlrms(folder: Path) -> None:
    """Checkpoints of TorchRec's DLRM by sharding type, under different outer names."""
    for kind in TYPES:
        state = dlrm_state(kind)
        dcp.save({"app": {"net": state}} if kind == "row_wise" else state, checkpoint_id=folder / kind)


def start_all(folder: Path, pairs: list[tuple[str, str]]) -> dict[tuple[str, str, str], tuple[Weights, Weights]]:
    """A STEM's weights before and after, by kind of source and the sharding types of the source and of the STEM."""
    weight_source._BLOCK_ROWS = 1000  # 5000 rows are sent in several blocks.
    plain = build_dlrm().state_dict()
    started = {}
    for kind in TYPES:
        run = Run.build(config_of("sgd", kind))
        sources: dict[tuple[str, str], Path | Weights] = {("plain", "data_parallel"): plain}
        for source_kind in [pair[0] for pair in pairs if pair[1] == kind]:
            sources["disk", source_kind] = folder / source_kind
            sources["memory", source_kind] = dlrm_state(source_kind)
        for (where, source_kind), source in sources.items():
            warm_start(run.model, build_dlrm(seed=1).state_dict(), FILLED)  # Other weights than the source's.
            before = run.weights()
            warm_start(run.model, source, FILLED)
            started[where, source_kind, kind] = before, run.weights()
    return started


def refusals(folder: Path) -> dict[str, str]:
    messages = {}
    run = Run.build(config_of("sgd", "row_wise"))
    before = run.weights()
    state = build_dlrm().state_dict()
    twice = {**state, "other.t_uid.weight": torch.zeros(5000, 8)}
    for name, (source, tables) in {
        "missing in the source": (folder / "row_wise", {"shared/uid": "t_uid", "like/uid": "t_uit"}),
        "missing in the model": (state, {"shared/uid": "t_uid", "lik/uid": "t_uid"}),
        "another size": (folder / "table_wise", {"shared/uid": "t_uid", "shared/tags": "t_uid"}),
        "several": (twice, {"shared/uid": "t_uid"}),
        "nothing": (folder, {"shared/uid": "t_uid"}),
    }.items():
        with pytest.raises(UserError) as error:
            warm_start(run.model, source, tables)
        messages[name] = str(error.value).replace(str(folder), "FOLDER")
    assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())
    return messages


def two_ranks(one: Path, two: Path, pairs: list[tuple[str, str]]):
    save_dlrms(two)
    return start_all(one, pairs), refusals(two)


SOME_PAIRS = list(zip(TYPES, TYPES[1:] + TYPES[:1], strict=True))
"""Sharding types of the source and of the STEM."""
ALL_PAIRS = list(itertools.product(TYPES, TYPES))


@pytest.fixture(
    scope="module",
    params=[pytest.param(SOME_PAIRS, id="some"), pytest.param(ALL_PAIRS, marks=pytest.mark.long, id="all")],
)
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run_ranks(1, save_dlrms, one)
    [first, second] = run_ranks(2, two_ranks, one, two, request.param)
    [alone] = run_ranks(1, start_all, two, request.param)
    started = {"2 ranks": first[0], "second of 2": second[0], "1 rank": alone}
    assert all(len(of_ranks) == len(TYPES) + 2 * len(request.param) for of_ranks in started.values())
    return {"started": started, "messages": first[1]}


@pytest.mark.parametrize("ranks", ["2 ranks", "second of 2", "1 rank"])
def test_named_tables_start_from_the_source_bit_for_bit_and_nothing_else_changes(results, ranks: str):
    expected = dlrm_tables()
    for case, (before, after) in results["started"][ranks].items():
        for name, weight in after.items():
            table = name.removeprefix(f"{TABLES}.").removesuffix(".weight")
            if table in FILLED:
                assert torch.equal(weight, expected[FILLED[table]]), (case, name)
                assert not torch.equal(weight, before[name])
            else:
                assert torch.equal(weight, before[name]), (case, name)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing in the source", "FOLDER/row_wise has no table 't_uit', only t_tags, t_uid; did you mean 't_uid'?"),
        (
            "missing in the model",
            "this model has no table 'lik/uid', only finish/tags, finish/uid, like/tags, like/uid, shared/tags, "
            "shared/uid; did you mean 'like/uid'?",
        ),
        (
            "another size",
            "shared/tags cannot start from t_uid: it is 7 x 8 in this model and 5000 x 8 in FOLDER/table_wise; both "
            "need the same rows and columns.",
        ),
        (
            "several",
            "the state dict has several tables 't_uid': "
            f"{EMBEDDINGS}.embedding_bags.t_uid.weight, other.t_uid.weight; give the whole name of one.",
        ),
        ("nothing", "FOLDER holds no weights; a training run writes them at its first evaluation."),
    ],
)
def test_tables_that_do_not_fit_are_refused_before_a_weight_changes(results, case: str, message: str):
    assert results["messages"][case] == message


@pytest.mark.parametrize(
    ("how", "sharding_type", "ranks"),
    [
        (table_wise(rank=2), "table_wise", [2]),
        (row_wise(), "row_wise", [0, 1, 2, 3]),
        (column_wise(ranks=[3, 1]), "column_wise", [3, 1]),
        (table_row_wise(host_index=1), "table_row_wise", [2, 3]),
        (grid_shard(host_indexes=[1]), "grid_shard", [2, 3]),
        (data_parallel(), "data_parallel", [0, 1, 2, 3]),
    ],
)
def test_tables_are_planned_as_those_of_another_plan(how, sharding_type: str, ranks: list[int]):
    collection = build_dlrm().get_submodule(EMBEDDINGS)
    module_plan = construct_module_sharding_plan(
        collection, {"t_uid": how, "t_tags": table_wise(rank=0)}, local_size=2, world_size=4, device_type="cpu"
    )
    model = build_model(MODEL, COLUMNS)
    # All tables, as the planner would try every combination of types of the others.
    tables = {table.name: "t_uid" for table in table_configs(model)}
    placements = placements_like(ShardingPlan({EMBEDDINGS: module_plan}), tables)
    plan = plan_sharding(model, topology=FOUR_RANKS, batch_size=12, placements=placements)
    assert {(table.sharding_type, tuple(table.ranks)) for table in plan.tables} == {(sharding_type, tuple(ranks))}


def test_shards_keep_their_ranks_in_the_order_of_columns_and_then_rows():
    grid = Placement("grid_shard", "fused", ranks=(2, 3, 0, 1))
    plan = plan_sharding(build_dlrm(), topology=FOUR_RANKS, batch_size=12, placements={"t_uid": grid})
    shards = plan.sharding_plan.plan[EMBEDDINGS]["t_uid"].sharding_spec.shards
    assert [tuple(shard.shard_offsets) for shard in shards] == [(0, 0), (2500, 0), (0, 4), (2500, 4)]
    shards.reverse()
    assert placements_like(plan.sharding_plan, {"shared/uid": "t_uid"}) == {"shared/uid": grid}


def test_a_placement_keeps_the_kernel_and_its_cache():
    sharding = ParameterSharding("row_wise", "fused_uvm_caching", cache_params=CacheParams(load_factor=0.3))
    plan = ShardingPlan({"ebc": EmbeddingModuleShardingPlan({"t_uid": sharding})})
    assert placements_like(plan, {"a": "t_uid", "b": "t_uid"}) == dict.fromkeys(
        "ab", Placement("row_wise", "fused_uvm_caching", (), 0.3)
    )
    with pytest.raises(UserError, match="the plan has no table 't_uit', only t_uid; did you mean 't_uid'"):
        placements_like(plan, {"a": "t_uit"})
    both = ShardingPlan({"a": plan.plan["ebc"], "b": plan.plan["ebc"]})
    with pytest.raises(UserError, match="the plan has a table 't_uid' in 2 modules"):
        placements_like(both, {"a": "t_uid"})


def caches_emptied(kind: str) -> int:
    """How often a warm start emptied the cache of a fused kernel, which has none on CPU."""
    run, calls = Run.build(config_of("sgd", kind)), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SplitTableBatchedEmbeddingBagsCodegen, "reset_cache_states", lambda self: calls.append(self))
        warm_start(run.model, build_dlrm().state_dict(), FILLED)
    return len(calls)


def test_a_warm_start_empties_the_caches_of_tables_in_host_memory():
    assert run_ranks(1, caches_emptied, "row_wise") == [1]
    # They are in no fused kernel.
    assert run_ranks(1, caches_emptied, "data_parallel") == [0]


def test_a_model_without_memory_is_refused():
    with pytest.raises(UserError, match=r"finish/uid\.weight has no memory yet; shard the model first"):
        warm_start(build_model(MODEL, COLUMNS), build_dlrm().state_dict(), FILLED)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # A warning of dcp.save.
def test_a_model_that_is_not_sharded_starts_without_a_process_group(tmp_path: Path):
    model = build_model(MODEL, COLUMNS, table_device="cpu")
    warm_start(model, build_dlrm().state_dict(), FILLED)
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = build_model(MODEL, COLUMNS, table_device="cpu")
    warm_start(other, tmp_path, {"shared/uid": "like/uid"})
    assert torch.equal(other.state_dict()[f"model.{TABLES}.shared/uid.weight"], dlrm_tables()["t_uid"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # A warning of dcp.save.
def test_damaged_weights_are_refused_in_one_sentence(tmp_path: Path):
    model = build_model(MODEL, COLUMNS, table_device="cpu")
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    whole = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError) as error:
        warm_start(model, tmp_path, {"shared/uid": "like/uid"})
    assert str(error.value) == f"{tmp_path} cannot be read: pickle data was truncated"
