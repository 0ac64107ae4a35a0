"""A STEM that starts from the tables and the plan of a model that is not ours, on any ranks."""

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
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
from stem_torchrec.transfer import weight_source
from stem_torchrec.transfer.warm_start import placements_like, warm_start

from distributed import run_ranks
from dlrm import EMBEDDINGS, TYPES, build_dlrm, shard_dlrm, their_plan
from reference import COLUMNS, TABLES
from runs import MODEL, Run, config_of

FOUR_RANKS = make_topology(world_size=4, local_world_size=2, device="cpu")
FILLED = {"shared/uid": "t_uid", "shared/tags": "t_tags", "like/uid": "t_uid"}
Weights = dict[str, Tensor]


def theirs() -> Weights:
    """Their tables, which all ranks make alike."""
    return {
        table: build_dlrm().get_parameter(f"{EMBEDDINGS}.embedding_bags.{table}.weight") for table in FILLED.values()
    }


def their_state(kind: str) -> Weights:
    """The state dict of TorchRec's DLRM on these ranks."""
    model = build_dlrm()
    return shard_dlrm(model, their_plan(model, kind))[0].state_dict()


def save_theirs(folder: Path) -> None:
    """Checkpoints of TorchRec's DLRM by sharding type, under different outer names."""
    for kind in TYPES:
        state = their_state(kind)
        dcp.save({"app": {"net": state}} if kind == "row_wise" else state, checkpoint_id=folder / kind)


def start_all(folder: Path) -> dict[tuple[str, str, str], tuple[Weights, Weights]]:
    """A STEM's weights before and after, by where theirs are, how they are sharded and how ours are."""
    weight_source._BLOCK_ROWS = 1000  # Their 5000 rows pass the ranks in several blocks.
    sources = {("plain", "data_parallel"): build_dlrm().state_dict()}
    for kind in TYPES:
        sources["disk", kind] = folder / kind
        sources["memory", kind] = their_state(kind)
    started = {}
    for ours in TYPES:
        run = Run.build(config_of("sgd", ours))
        for (where, kind), source in sources.items():
            warm_start(run.model, build_dlrm(seed=1).state_dict(), FILLED)  # Away from what was filled in before.
            before = run.weights()
            warm_start(run.model, source, FILLED)
            started[where, kind, ours] = before, run.weights()
    return started


def refusals(folder: Path) -> dict[str, str]:
    messages = {}
    run = Run.build(config_of("sgd", "row_wise"))
    before = run.weights()
    state = build_dlrm().state_dict()
    twice = {**state, "other.t_uid.weight": torch.zeros(5000, 8)}
    for name, (source, tables) in {
        "theirs is missing": (folder / "row_wise", {"shared/uid": "t_uid", "like/uid": "t_uit"}),
        "ours is missing": (state, {"shared/uid": "t_uid", "lik/uid": "t_uid"}),
        "another size": (folder / "table_wise", {"shared/uid": "t_uid", "shared/tags": "t_uid"}),
        "several": (twice, {"shared/uid": "t_uid"}),
        "nothing": (folder, {"shared/uid": "t_uid"}),
    }.items():
        with pytest.raises(UserError) as error:
            warm_start(run.model, source, tables)
        messages[name] = str(error.value).replace(str(folder), "FOLDER")
    assert all(torch.equal(weight, before[name]) for name, weight in run.weights().items())
    return messages


def two_ranks(one: Path, two: Path):
    save_theirs(two)
    return start_all(one), refusals(two)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory):
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run_ranks(1, save_theirs, one)
    [first, second] = run_ranks(2, two_ranks, one, two)
    [alone] = run_ranks(1, start_all, two)
    return {"2 ranks": first[0], "second of 2": second[0], "1 rank": alone, "messages": first[1]}


@pytest.mark.parametrize("ranks", ["2 ranks", "second of 2", "1 rank"])
@pytest.mark.parametrize("where", ["disk", "memory", "plain"])
def test_tables_start_from_theirs_bit_for_bit_and_nothing_else_changes(results, ranks: str, where: str):
    expected = theirs()
    cases = {case: run for case, run in results[ranks].items() if case[0] == where}
    assert len(cases) == (4 if where == "plain" else 16)
    for case, (before, after) in cases.items():
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
        ("theirs is missing", "FOLDER/row_wise has no table 't_uit', only t_tags, t_uid; did you mean 't_uid'?"),
        (
            "ours is missing",
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
def test_tables_that_do_not_fit_are_refused_before_anything_changes(results, case: str, message: str):
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
def test_tables_are_planned_as_theirs_are(how, sharding_type: str, ranks: list[int]):
    collection = build_dlrm().get_submodule(EMBEDDINGS)
    module_plan = construct_module_sharding_plan(
        collection, {"t_uid": how, "t_tags": table_wise(rank=0)}, local_size=2, world_size=4, device_type="cpu"
    )
    placements = placements_like(ShardingPlan({EMBEDDINGS: module_plan}), {"shared/uid": "t_uid"})
    plan = plan_sharding(build_model(MODEL, COLUMNS), topology=FOUR_RANKS, batch_size=12, placements=placements)
    [planned] = [table for table in plan.tables if table.name == "shared/uid"]
    assert (planned.sharding_type, planned.ranks) == (sharding_type, ranks)


def test_shards_keep_their_ranks_in_the_order_of_columns_and_then_rows():
    grid = Placement("grid_shard", "fused", ranks=(2, 3, 0, 1))
    theirs = plan_sharding(build_dlrm(), topology=FOUR_RANKS, batch_size=12, placements={"t_uid": grid})
    shards = theirs.sharding_plan.plan[EMBEDDINGS]["t_uid"].sharding_spec.shards
    assert [tuple(shard.shard_offsets) for shard in shards] == [(0, 0), (2500, 0), (0, 4), (2500, 4)]
    shards.reverse()
    assert placements_like(theirs.sharding_plan, {"shared/uid": "t_uid"}) == {"shared/uid": grid}


def test_a_placement_keeps_the_kernel_and_its_cache():
    theirs = ParameterSharding("row_wise", "fused_uvm_caching", cache_params=CacheParams(load_factor=0.3))
    plan = ShardingPlan({"ebc": EmbeddingModuleShardingPlan({"t_uid": theirs})})
    assert placements_like(plan, {"a": "t_uid", "b": "t_uid"}) == dict.fromkeys(
        "ab", Placement("row_wise", "fused_uvm_caching", (), 0.3)
    )
    with pytest.raises(UserError, match="the plan has no table 't_uit', only t_uid; did you mean 't_uid'"):
        placements_like(plan, {"a": "t_uit"})
    both = ShardingPlan({"a": plan.plan["ebc"], "b": plan.plan["ebc"]})
    with pytest.raises(UserError, match="the plan has a table 't_uid' in 2 modules"):
        placements_like(both, {"a": "t_uid"})


def test_a_model_without_memory_is_to_be_sharded_first():
    with pytest.raises(UserError, match=r"finish/uid\.weight has no memory yet; shard the model first"):
        warm_start(build_model(MODEL, COLUMNS), build_dlrm().state_dict(), FILLED)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # Said by the save.
def test_a_model_that_is_not_sharded_starts_without_a_process_group(tmp_path: Path):
    model = build_model(MODEL, COLUMNS, table_device="cpu")
    warm_start(model, build_dlrm().state_dict(), FILLED)
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = build_model(MODEL, COLUMNS, table_device="cpu")
    warm_start(other, tmp_path, {"shared/uid": "like/uid"})
    assert torch.equal(other.state_dict()[f"model.{TABLES}.shared/uid.weight"], theirs()["t_uid"])


@pytest.mark.parametrize(
    ("share", "rest", "reason"), [(0.5, b"", "pickle data was truncated"), (0, b"no pickle", "invalid load key, 'n'")]
)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # Said by the save.
def test_damaged_weights_are_refused_in_one_sentence(tmp_path: Path, share: float, rest: bytes, reason: str):
    model = build_model(MODEL, COLUMNS, table_device="cpu")
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    whole = (tmp_path / ".metadata").read_bytes()
    (tmp_path / ".metadata").write_bytes(whole[: int(share * len(whole))] + rest)
    with pytest.raises(DamagedError) as error:
        warm_start(model, tmp_path, {"shared/uid": "like/uid"})
    assert str(error.value) == f"{tmp_path} cannot be read: {reason}"
