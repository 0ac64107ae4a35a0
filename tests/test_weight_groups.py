"""Which group a weight belongs to, and groups that cannot be frozen or have a factor of their own."""

import dataclasses
import re

import pytest

from stem_torchrec.config import SparseOptimizerConfig
from stem_torchrec.models.build import build_model
from stem_torchrec.models.table import MODELS, with_arch
from stem_torchrec.models.trained_by import tasks_of_parameters
from stem_torchrec.models.weight_groups import check_rate_factors, freeze, group_of, groups_with_weights
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.optimizers import apply_sparse_optimizer

from reference import COLUMNS
from runs import MODEL

GROUPS = (*COLUMNS.labels, "shared")


@pytest.mark.parametrize("arch", MODELS)
def test_in_every_model_a_frozen_group_gets_no_gradient_and_the_others_get_all_of_theirs(arch: str) -> None:
    config = with_arch(MODEL, arch)

    def trained(*frozen: str) -> dict[str, frozenset[int]]:
        train = build_model(config, COLUMNS)
        freeze(train.model, frozen)
        return tasks_of_parameters(train, tasks=2, dense_in_features=len(COLUMNS.dense))

    everything = trained()
    groups = groups_with_weights(build_model(config, COLUMNS).model)
    assert (
        set(groups)
        == {group_of(name, GROUPS) for name in everything}
        == {"finish", "like", "shared"} - ({"shared"} if arch == "single_task" else set())
    )
    for group in groups:
        assert trained(group) == {name: tasks for name, tasks in everything.items() if group_of(name, GROUPS) != group}


def test_what_belongs_to_a_task_is_named_by_the_key_of_a_module_also_if_a_task_is_called_like_a_part() -> None:
    groups = ("gates", "experts", "0", "shared")
    assert group_of("model.layers.0.experts.gates.0.weight", groups) == "gates"
    assert group_of("model.layers.0.gates.experts.mlp.0.weight", groups) == "experts"
    assert group_of("model.layers.0.experts.shared.0.weight", groups) == "shared"
    assert group_of("model.towers.0.2.bias", groups) == "0"
    assert group_of("bottom.0.weight", groups) == "shared"
    assert group_of("model.cross.like.weight", GROUPS) == "like"
    assert group_of("sparse_arch.embedding_bag_collection.embedding_bags.like/uid.weight", groups) == "like"


@pytest.mark.parametrize(
    ("frozen", "factors", "message"),
    [
        (("shard",), {}, "--train.freeze names the group 'shard', but the model has only finish, like, shared; did"),
        (("like", "finish", "shared"), {}, "--train.freeze names all groups, finish, like, shared; leave out those"),
        ((), {"liked": 0.1}, "--train.rate-factors names the group 'liked', .*; did you mean 'like'?"),
        (("like",), {"like": 0.1}, "--train.rate-factors names 'like', which --train.freeze does not train"),
    ],
)
def test_groups_that_cannot_be_frozen_are_refused(frozen: tuple[str, ...], factors: dict, message: str) -> None:
    def choose() -> None:
        model = build_model(MODEL, COLUMNS).model
        freeze(model, frozen)
        check_rate_factors(model, factors)

    with pytest.raises(UserError, match=re.escape(message).replace(r"\.\*", ".*")):
        choose()


def test_moments_beside_a_frozen_group_in_a_packed_table_are_refused() -> None:
    train = build_model(dataclasses.replace(MODEL, layout="packed"), COLUMNS)
    freeze(train.model, ["like"])
    apply_sparse_optimizer(train, SparseOptimizerConfig("adagrad"))
    rates = {"shared": 0.02, "finish": 0.02, "like": 1.0}
    apply_sparse_optimizer(train, SparseOptimizerConfig("sgd", learning_rate=0.02, group_learning_rates=rates))
    for config, what in (
        (SparseOptimizerConfig("adam"), "the moments of adam"),
        (SparseOptimizerConfig("adam", weight_decay=0.1), "a weight decay"),
    ):
        with pytest.raises(
            UserError, match=rf"^{what} would move what --train.freeze keeps in the packed table finish"
        ):
            apply_sparse_optimizer(train, config)
