"""Rules and plan files, and the plans that the planner makes with them, offline."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torchrec.distributed.planner import Topology

from stem_torchrec.config import ShardingConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import COLUMN_TYPES, FUSED_TYPES, HOST_TYPES
from stem_torchrec.sharding.plan import Plan, format_plan, imbalance
from stem_torchrec.sharding.plan_file import plan_to_json
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.topology import make_topology
from stem_torchrec.tables import table_configs
from stem_torchrec.training.assembly import choose_placements

from reference import sparse_features
from runs import MODEL

pytestmark = pytest.mark.stack

OTHERS = {"dense": (), "labels": ("finish", "like"), "group": None}
FEATURES = {"uid": 1000, "iid": 1000, "segment": 20, "category": 20, "tags": 100}


def a_model(**features: int) -> MultiTaskTrain:
    return build_model(MODEL, Columns(sparse=sparse_features(**(features or FEATURES)), **OTHERS))


def topology(world_size: int = 16, *, local: int = 8, device: str = "cpu", hbm_gib: float | None = None) -> Topology:
    return make_topology(world_size=world_size, local_world_size=local, device=device, hbm_gib=hbm_gib)


def plan(
    *rules: str, ranks: Topology | None = None, whole_rows: bool = False, model: MultiTaskTrain | None = None, **options
) -> Plan:
    model, ranks = model or a_model(), ranks or topology()
    placements = choose_placements(ShardingConfig(rules=rules, **options), table_configs(model), ranks)
    return plan_sharding(model, topology=ranks, batch_size=256, placements=placements, whole_rows=whole_rows)


def types(made: Plan, pattern: str = "") -> set[str]:
    return {table.sharding_type for table in made.tables if table.name.startswith(pattern)}


def table(made: Plan, name: str):
    return next(table for table in made.tables if table.name == name)


def refused(*rules: str, **options) -> str:
    with pytest.raises(UserError) as error:
        plan(*rules, **options)
    return str(error.value)


def test_auto_cuts_no_columns_where_the_optimizer_couples_the_elements_of_a_row():
    assert types(plan()) & set(COLUMN_TYPES), "else this test shows nothing"
    assert not types(plan(whole_rows=True)) & set(COLUMN_TYPES)


def test_a_type_that_is_asked_for_is_what_all_tables_get():
    for sharding_type in ("row_wise", "column_wise", "data_parallel"):
        assert types(plan(type=sharding_type, whole_rows=True)) == {sharding_type}
    assert types(plan(kernel="dense")) == {"data_parallel"}


def test_the_first_rule_that_matches_a_table_holds_and_the_planner_fills_the_rest():
    made = plan(
        "shared/uid=data_parallel", "shared/*=row_wise", "like/uid=table_wise:rank=13", "finish/i?d=column_wise"
    )
    assert types(made, "shared/uid") == {"data_parallel"}
    assert types(made, "shared/iid") | types(made, "shared/tags") == {"row_wise"}
    assert table(made, "like/uid").ranks == [13]
    assert types(made, "finish/iid") == {"column_wise"}
    assert types(made, "like/tags") <= set(FUSED_TYPES)
    assert {table.name for table in made.tables} == {f"{g}/{f}" for g in ("finish", "like", "shared") for f in FEATURES}


def test_named_ranks_hold_the_shards_in_their_order():
    made = plan(
        "like/uid=column_wise:rank=9,2",
        "like/iid=table_column_wise:rank=12,10",
        "like/tags=table_row_wise:rank=11",
        "finish/uid=grid_shard:rank=8,0",
        "finish/iid=grid_shard:rank=3",
    )
    assert [(s.rank, s.rows, s.columns) for s in table(made, "like/uid").shards] == [(9, 1000, 4), (2, 1000, 4)]
    assert table(made, "like/iid").ranks == [12, 10]
    # One rank of a host stands for the host.
    assert table(made, "like/tags").ranks == [*range(8, 16)]
    assert table(made, "finish/uid").ranks == [*range(8, 16), *range(8)]
    assert {shard.columns for shard in table(made, "finish/uid").shards} == {4}
    assert table(made, "finish/iid").ranks == [*range(8)]


def test_the_planner_places_other_tables_around_those_with_named_ranks():
    uid = {"uid": 1_000_000, "iid": 1_000_000}
    made = plan(
        "shared/*=table_wise:rank=0", "*=table_wise", model=a_model(**uid), ranks=topology(2, local=2, device="cpu")
    )
    # Two of six equal tables are on rank 0 already, so three tables each means that it gets one more.
    assert sorted(rank for t in made.tables for rank in t.ranks) == [0, 0, 0, 1, 1, 1]


def test_tables_that_gpu_memory_does_not_hold_spill_to_the_host():
    big = a_model(uid=100_000_000, iid=1000)
    # 3 x 3.0 GiB of uid tables.
    roomy, tight = (plan(model=big, ranks=topology(2, local=2, device="cuda", hbm_gib=gib)) for gib in (16, 2))
    assert {table.kernel for table in roomy.tables} == {"fused"}
    assert {table.kernel for table in tight.tables} > {"fused"}
    assert all(table.kernel.startswith("fused_uvm") for table in tight.tables if table.kernel != "fused")
    assert max(tight.per_rank("memory")) < 2 * 1024 < max(roomy.per_rank("memory"))
    assert max(tight.per_rank("host_memory")) > 0 == max(roomy.per_rank("host_memory"))


def test_a_plan_that_does_not_fit_is_one_sentence():
    big = a_model(uid=100_000_000, iid=1000)
    ranks = topology(2, local=2, device="cuda", hbm_gib=2)
    assert "no plan fits 2 ranks" in refused("*=table_wise:kernel=fused", model=big, ranks=ranks)
    assert "shared/uid does not fit on rank 1" in refused(
        "shared/uid=table_wise:kernel=fused:rank=1", model=big, ranks=ranks
    )


def test_a_table_is_at_most_as_wide_as_the_kernels_of_a_gpu_on_each_rank():
    """Beyond 1024 columns some of FBGEMM's kernels return zeros (torchrec#3673)."""
    columns = Columns(sparse=sparse_features(uid=1000), **OTHERS)
    # Three groups of 344 columns side by side.
    wide = build_model(replace(MODEL, embedding_dim=344, layout="packed"), columns)
    here, there = (topology(2, local=2, device=device) for device in ("cuda", "cpu"))
    assert refused("*=table_wise", model=wide, ranks=here) == (
        "the table finish+like+shared/uid has 1032 columns on a rank, but FBGEMM looks up at most 1024 on GPUs; choose "
        "a smaller --model.embedding-dim, --model.layout split, or column_wise sharding."
    )
    assert types(plan("*=table_wise", model=wide, ranks=there)) == {"table_wise"}
    [cut] = plan("*=column_wise", model=wide, ranks=here).tables
    assert [shard.columns for shard in cut.shards] == [516, 516]
    split = build_model(replace(MODEL, embedding_dim=344), columns)
    assert types(plan("*=table_wise", model=split, ranks=here)) == {"table_wise"}


def test_a_cache_load_factor_reaches_the_plan():
    made = plan("shared/*=row_wise:kernel=fused_uvm_caching:cache=0.1", ranks=topology(device="cuda"))
    sharding = next(iter(made.sharding_plan.plan.values()))
    assert table(made, "shared/uid").cache_load_factor == 0.1
    assert sharding["shared/uid"].cache_params.load_factor == 0.1
    assert sharding["shared/uid"].compute_kernel == "fused_uvm_caching"


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("shard/*=row_wise", "'shard/*=row_wise' matches no table; the tables are finish/uid, finish/iid"),
        ("like/uid=rowwise", "sharding type 'rowwise'.*did you mean 'row_wise'"),
        ("like/uid", "is not a rule; write PATTERN=TYPE"),
        ("like/uid=table_wise:ranks=1", "'ranks=1' is not an option"),
        ("like/uid=table_wise:rank=one", "rank is 'one'"),
        ("like/uid=table_wise:rank=16", "like/uid is to be on rank 16, but this run has the ranks 0 to 15"),
        ("like/uid=table_wise:rank=0,1", "like/uid as table_wise has 1 shards, but 2 ranks are named"),
        ("like/uid=column_wise:rank=0,1,2", "like/uid cannot be cut into 3 blocks of columns.*its 8 columns"),
        ("like/uid=table_column_wise:rank=0,8", "like/uid as table_column_wise stays on one host"),
        ("like/uid=auto:rank=1", "like/uid has ranks but no sharding type"),
        ("like/uid=row_wise:rank=1", "like/uid has ranks, but row_wise tables lie on all ranks"),
        ("like/uid=row_wise:kernel=fast", "the kernel 'fast'"),
        ("like/uid=row_wise:kernel=dense", "like/uid cannot be row_wise with the kernel dense"),
        ("like/uid=data_parallel:kernel=fused", "like/uid cannot be data_parallel with the kernel fused"),
        ("like/uid=row_wise:kernel=fused_uvm", "the kernel fused_uvm of like/uid needs a GPU"),
        ("like/uid=row_wise:cache=0.1", "like/uid has a cache load factor, which only"),
        ("like/uid=row_wise:kernel=fused_uvm_caching:cache=2", "cache is '2', not a share"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_with_its_reason(rule: str, sentence: str):
    with pytest.raises(UserError, match=sentence.replace("*=", r"\*=")):
        plan(rule)


def test_a_rule_behind_one_that_takes_all_its_tables_is_refused():
    assert "comes too late" in refused("shared/*=row_wise", "shared/uid=table_wise")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    made = plan(
        "like/uid=column_wise:rank=9,2",
        "like/iid=table_column_wise",
        "like/tags=table_row_wise:rank=11",
        "finish/uid=grid_shard",
        "finish/iid=data_parallel",
        "shared/*=row_wise",
        "*=table_wise",
    )
    path = tmp_path / "plan.json"
    path.write_text(plan_to_json(made))
    return path


def test_a_plan_file_gives_the_same_plan_again(plan_file: Path):
    again = plan(plan=str(plan_file))
    assert plan_to_json(again) == plan_file.read_text()
    assert {t["sharding_type"] for t in json.loads(plan_file.read_text())["tables"].values()} > {
        *HOST_TYPES,
        "row_wise",
    }


def edited(path: Path, table: str, **values) -> str:
    content = json.loads(path.read_text())
    content["tables"].setdefault(table, {}).update(values)
    path.write_text(json.dumps(content))
    return str(path)


def test_a_plan_file_that_does_not_fit_says_which_tables_and_why(plan_file: Path):
    file = str(plan_file)
    assert "it is for 16 ranks, and this run has 2" in refused(plan=file, ranks=topology(2, local=2))
    moved = refused(plan=file, ranks=topology(16, local=4))
    assert "finish/uid, like/iid, like/tags need 8 ranks per host, and this run has 4" in moved
    other = refused(plan=file, model=a_model(**{**FEATURES, "new": 5, "uid": 7}))
    assert "it has no finish/new, like/new, shared/new" in other
    assert "like/uid is 1000 x 8 in the plan and 7 x 8 in this model" in other
    fewer = refused(plan=file, model=a_model(uid=1000, iid=1000, segment=20, category=20))
    assert "this model has no finish/tags, like/tags, shared/tags" in fewer
    assert "leave out --sharding.rules" in refused("shared/*=row_wise", plan=file)


def test_a_file_that_is_not_a_plan_is_refused(plan_file: Path, tmp_path: Path):
    assert "cannot be read" in refused(plan=str(tmp_path / "none.json"))
    (tmp_path / "empty.json").write_text("{}")
    assert "cannot be read as a plan (world_size is missing)" in refused(plan=str(tmp_path / "empty.json"))
    plan_file.write_text("{")
    assert "line 1 column 1" in refused(plan=str(plan_file))


@pytest.mark.parametrize(
    ("table", "values", "reason"),
    [
        ("like/uid", {"sharding_type": "diagonal"}, "tables[like/uid].sharding_type is 'diagonal', but must be 'data_"),
        ("like/uid", {"compute_kernel": None}, "tables[like/uid].compute_kernel is None, but must be 'dense', 'fused'"),
        ("like/uid", {"ranks": "0"}, "tables[like/uid].ranks is '0', but must be a list of numbers from 0 to"),
        ("like/uid", {"ranks": {"0": 1}}, "tables[like/uid].ranks is {'0': 1}, but must be a list of numbers"),
        ("like/uid", {"ranks": ["0", "1"]}, "tables[like/uid].ranks[0] is '0', but must be a whole number from 0 to"),
        ("like/uid", {"ranks": [0.9, 1]}, "tables[like/uid].ranks[0] is 0.9, but must be a whole number from 0 to"),
        ("like/uid", {"ranks": [True, 1]}, "tables[like/uid].ranks[0] is True, but must be a whole number from 0 to"),
        ("like/uid", {"ranks": [-1, 1]}, "tables[like/uid].ranks[0] is -1, but must be from 0 to"),
        ("like/uid", {"ranks": [0, 16]}, "like/uid is to be on rank 16, but this run has the ranks 0 to 15"),
        ("like/uid", {"ranks": []}, "does not fit: like/uid has no ranks"),
        ("shared/uid", {"rows": True}, "tables[shared/uid].rows is True, but must be a whole number from 1 to"),
        ("shared/uid", {"cache_load_factor": 0}, "tables[shared/uid].cache_load_factor is 0, but must be above 0 and"),
        ("shared/uid", {"rank": [0]}, "there is no field 'tables[shared/uid].rank'; did you mean 'ranks'?"),
        ("like/tags", {"ranks": [8, 8, 9, 10, 11, 12, 13, 14]}, "on all ranks of a host in their order"),
        ("finish/uid", {"ranks": [1, 0, *range(2, 16)]}, "on all ranks of a host in their order"),
        ("finish/item", {}, "tables[finish/item].rows is missing"),
    ],
)
def test_a_plan_file_with_a_wrong_value_is_refused_with_its_place(
    plan_file: Path, table: str, values: dict, reason: str
):
    assert reason in refused(plan=edited(plan_file, table, **values))


@pytest.mark.parametrize("rank", ["NaN", "Infinity", "1e400", "9" * 5000])
def test_a_rank_that_is_no_number_of_json_is_refused(plan_file: Path, rank: str):
    plan_file.write_text(plan_file.read_text().replace('"ranks": [9, 2]', f'"ranks": [{rank}, 2]'))
    assert "cannot be read as a plan (" in refused(plan=str(plan_file))


def test_the_printed_plan_shows_every_table_its_estimate_and_how_even_the_ranks_are():
    made = plan("shared/*=row_wise", "like/uid=table_wise:rank=13")
    text = format_plan(made)
    for planned in made.tables:
        [line] = [line for line in text.splitlines() if line.startswith(f"{planned.name} ")]
        assert planned.sharding_type in line
        assert f"{max(shard.estimate_ms for shard in planned.shards):.4f}" in line
    weights = made.per_rank("weights")
    # All the weights are somewhere, once.
    assert sum(weights) == pytest.approx(3 * sum(FEATURES.values()) * 8 * 4 / 2**20)
    assert f"{imbalance(weights):.3f}" in text
    # Of many tables the text has the largest.
    many = replace(made, tables=tuple(replace(made.tables[0], name=f"t/{n}", rows=n + 1) for n in range(50)))
    lines = format_plan(many).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("t/")] == [f"t/{n}" for n in range(30, 50)]
    assert [line.split()[:4] for line in lines if "smaller" in line] == [["30", "smaller", "ones", "465"]]
    assert imbalance(weights) == pytest.approx(max(weights) * 16 / sum(weights))
