"""What the planner may choose, offline."""

import pytest
from torchrec.distributed.planner import Topology

from stem_torchrec.data.files import Columns
from stem_torchrec.errors import UserError
from stem_torchrec.models.build import build_model
from stem_torchrec.sharding.planner import COLUMN_TYPES, format_plan, plan_sharding
from stem_torchrec.sharding.shard import table_configs

from runs import MODEL

OTHERS = {"dense": (), "labels": ("finish", "like"), "group": None}


def types_of(**arguments) -> set[str]:
    columns = Columns(sparse={"uid": 1000, "iid": 1000, "segment": 20, "category": 20, "tags": 100}, **OTHERS)
    model = build_model(MODEL, columns)
    topology = Topology(world_size=16, local_world_size=8, compute_device="cpu")
    plan = plan_sharding(model, topology=topology, batch_size=256, **arguments)
    assert "total" in format_plan(plan, table_configs(model), 16)
    return {sharding.sharding_type for module in plan.plan.values() for sharding in module.values()}


def test_auto_cuts_no_columns_where_the_optimizer_keeps_state_per_row():
    assert types_of() & set(COLUMN_TYPES), "else this test shows nothing"
    assert not types_of(whole_rows=True) & set(COLUMN_TYPES)


def test_a_type_that_is_asked_for_is_what_all_tables_get():
    for sharding_type in ("row_wise", "column_wise", "data_parallel"):
        assert types_of(sharding_type=sharding_type, whole_rows=True) == {sharding_type}
    assert types_of(kernel="dense") == {"data_parallel"}


@pytest.mark.parametrize(("sharding_type", "kernel"), [("row_wise", "dense"), ("data_parallel", "fused")])
def test_a_kernel_that_does_not_serve_the_type_is_refused(sharding_type: str, kernel: str):
    with pytest.raises(UserError, match=f"--sharding.kernel {kernel} does not serve {sharding_type} tables"):
        types_of(sharding_type=sharding_type, kernel=kernel)
