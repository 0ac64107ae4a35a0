"""Models in a program of one's own: tables and batches that do not fit them are errors, never other numbers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.stem import STEM
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import Placement
from stem_torchrec.sharding.planner import plan_sharding
from stem_torchrec.sharding.shard import shard
from stem_torchrec.sharding.topology import topology_here
from stem_torchrec.tables import embedding_bag_configs

from distributed import run_ranks
from runs import this_process

TASKS = ["finish", "like"]
FEATURES = [SparseFeature("uid", 1000), SparseFeature("tags", 50)]
TABLES = embedding_bag_configs(FEATURES, [*TASKS, "shared"])


def stem(tables: Sequence[EmbeddingBagConfig] = TABLES, *, is_weighted: bool = False, dense: int = 0) -> STEM:
    collection = EmbeddingBagCollection(tables=list(tables), is_weighted=is_weighted)
    return STEM(collection, TASKS, expert_hidden=[8], dense_in_features=dense)


def ids(
    *, rows: int = 2, uid: int = 7, keys: Sequence[str] = ("uid", "tags"), weights: bool = False
) -> KeyedJaggedTensor:
    """`rows` rows with an id of each feature."""
    values = torch.full((len(keys) * rows,), 7)
    values[:rows] = uid
    lengths = torch.ones(len(values), dtype=torch.int64)
    return KeyedJaggedTensor(list(keys), values, torch.ones(len(values)) if weights else None, lengths=lengths)


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("arch", MODELS)
def test_no_model_is_built_over_tables_without_one_of_its_groups(arch: str):
    groups = MODELS[arch].groups(TASKS)
    build = MODELS[arch].model
    for missing in groups:
        for others in [
            [g for g in groups if g != missing] or ["other"],
            [g.upper() if g == missing else g for g in groups],
        ]:
            collection = EmbeddingBagCollection(tables=embedding_bag_configs(FEATURES, others))
            message = refusal(lambda collection=collection: build(collection, TASKS))
            assert message.startswith(f"no table has columns for the group {missing!r}, only for {', '.join(others)}; ")


def test_a_mistyped_task_gets_the_nearest_name():
    collection = EmbeddingBagCollection(tables=embedding_bag_configs(FEATURES, ["finished", "like", "shared"]))
    assert refusal(lambda: STEM(collection, TASKS)).endswith("; did you mean 'finished'?")
    assert "a task cannot be called 'shared'" in refusal(lambda: STEM(collection, ["shared"]))


def test_all_groups_need_the_same_features_in_the_same_order_and_width():
    renamed = replace(TABLES[1], name="finish/tag", feature_names=["tag"])
    assert TABLES[1].name == "finish/tags"
    for tables, sentence in [
        ([TABLES[0], *TABLES[2:]], "the group 'finish' has no table for the feature 'tags', which 'like' has; all"),
        (TABLES[:3] + TABLES[4:], "the group 'like' has no table for the feature 'tags', which 'finish' has; all"),
        ([TABLES[0], renamed, *TABLES[2:]], "the feature 'tag', which 'finish' has; did you mean 'tags'?"),
        ([TABLES[1], TABLES[0], *TABLES[2:]], "need the same features in the same order and width"),
        ([replace(TABLES[0], embedding_dim=8), *TABLES[1:]], "of 'finish' have the widths {'uid': 8, 'tags': 16} and"),
    ]:
        assert sentence in refusal(lambda tables=tables: stem(tables))


@pytest.mark.parametrize("dense", [None, torch.ones(2, 2), torch.ones(3), torch.ones(2, 0), torch.ones(5, 3)])
def test_dense_features_that_the_model_is_not_built_for_are_refused(dense: Tensor | None):
    model = stem(dense=3)
    assert model(torch.ones(2, 3), ids()).shape == (2, 2)
    assert refusal(lambda: model(dense, ids())).endswith("a model with dense_in_features=3 needs (2, 3) for these ids.")


def test_dense_features_are_never_ignored():
    model = stem()
    assert torch.equal(model(torch.empty(2, 0), ids()), model(None, ids()))
    assert "the batch are of shape (2, 3), but" in refusal(lambda: model(torch.ones(2, 3), ids()))


def test_weights_of_ids_are_never_ignored_and_never_missing():
    assert "has weights of ids, which its tables would ignore" in refusal(lambda: stem()(None, ids(weights=True)))
    weighted = stem(is_weighted=True)
    assert weighted(None, ids(weights=True)).shape == (2, 2)
    assert "has no weights of ids, but its tables are weighted" in refusal(lambda: weighted(None, ids()))


def test_a_feature_that_the_batch_lacks_is_named_and_others_are_left_alone():
    assert stem()(None, ids(keys=("uid", "tags", "more"))).shape == (2, 2)
    message = refusal(lambda: stem()(None, ids(keys=("uid", "tag"))))
    assert message == "the batch has no feature 'tags', which the tables look up, only uid, tag; did you mean 'tag'?"


@pytest.mark.parametrize("uid", [1000, 2**40, -1])
def test_an_id_outside_its_table_is_named_before_sharding(uid: int):
    assert refusal(lambda: stem()(None, ids(uid=uid))) == (
        f"the batch has the id {uid} of 'uid', which is not in [0, 1000)."
    )


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("pooling", [PoolingType.SUM, PoolingType.MEAN])
def test_a_batch_without_rows_has_logits_of_0_rows_and_zero_gradients(pooling: PoolingType, is_weighted: bool):
    model = stem([replace(table, pooling=pooling) for table in TABLES], is_weighted=is_weighted)
    logits = model(torch.empty(0, 0), ids(rows=0, weights=is_weighted))
    assert logits.shape == (0, 2)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.eq(0).all() for p in model.parameters())


def refuse_sharded() -> list[str]:
    """What a sharded model answers to a batch without rows, and to batches that do not fit it."""
    process = this_process()
    tables = EmbeddingBagCollection(tables=TABLES, device=torch.device("meta"))
    placements = {table.name: Placement("row_wise") for table in TABLES}
    model: MultiTaskModel = STEM(tables, TASKS, expert_hidden=[8])
    plan = plan_sharding(model, topology=topology_here(process), batch_size=2, placements=placements).sharding_plan
    sharded = shard(model, plan, device=process.device, seed=0)
    assert sharded(torch.empty(0, 0), ids(rows=0)).shape == (0, 2)
    batches = [(torch.ones(2, 3), ids()), (None, ids(weights=True)), (None, ids(keys=("uid",)))]
    return [refusal(lambda batch=batch: sharded(*batch)) for batch in batches]


def test_a_sharded_model_checks_its_batches_too():
    for messages in run_ranks(2, refuse_sharded):
        for message, words in zip(messages, ["shape (2, 3)", "would ignore", "no feature 'tags'"], strict=True):
            assert re.search(re.escape(words), message)
