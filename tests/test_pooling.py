"""Sum and mean, weights and widths: every plan and layout trains what the equations train."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.data.files import Columns
from stem_torchrec.data.schema import SparseFeature
from stem_torchrec.sharding.placement import FUSED_TYPES

from distributed import run_ranks
from reference import COLUMNS, random_batch, train_by_hand
from runs import MODEL, ROWS, Run, config_of

STEPS = 4
TYPES = [*FUSED_TYPES, "data_parallel"]
FEATURES = {
    "weighted": [
        SparseFeature("uid", 50),
        SparseFeature("genres", 16, pooling="mean", embedding_dim=4),
        SparseFeature("words", 24, weights="word_weights", embedding_dim=12),
        SparseFeature("tags", 8, pooling="mean", weights="tag_weights", embedding_dim=16),
    ],
    "unweighted": [SparseFeature("uid", 50, embedding_dim=4), SparseFeature("genres", 16, pooling="mean")],
}
# Every type in the layout and with the input distribution that have the most of their own code, and each of the others.
CASES = [
    *((kind, "packed", name, "once") for kind in FEATURES for name in TYPES),
    *(("weighted", layout, name, "stock") for layout in ("split", "packed") for name in ("grid_shard", "row_wise")),
    ("weighted", "split", "table_wise", "once"),
]
ALL_CASES = [*itertools.product(FEATURES, ("split", "packed"), TYPES, ("stock", "once"))]
Case = tuple[str, str, str, str]


def columns_of(kind: str) -> Columns:
    return dataclasses.replace(COLUMNS, sparse={feature.name: feature for feature in FEATURES[kind]})


def batches_of(kind: str, world_size: int) -> list[list]:
    rows = ROWS // world_size
    parts = [slice(rank * rows, (rank + 1) * rows) for rank in range(world_size)]
    return [
        [random_batch(step, columns_of(kind), rows=ROWS, missing=0.3, part=part) for part in parts]
        for step in range(STEPS)
    ]


def config_of_case(layout: str, sharding_type: str, input_dist: str):
    model = dataclasses.replace(MODEL, layout=layout)
    config = config_of("adagrad", sharding_type, model=model, eps=1e-4)  # See test_sharded.
    sharding = dataclasses.replace(config.sharding, input_dist=input_dist)
    return dataclasses.replace(config, sharding=sharding)


def train_cases(cases: Iterable[Case]) -> dict[Case, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Weights before and after the training of each case."""
    trained = {}
    for case in cases:
        kind, *options = case
        run = Run.build(config_of_case(*options), columns_of(kind))
        before = run.weights()
        run.train([ranks[dist.get_rank()] for ranks in batches_of(kind, dist.get_world_size())])
        assert len(run.pipeline._pipelined_modules) == 1
        trained[case] = before, run.weights()
    return trained


@functools.cache
def by_hand(kind: str, world_size: int) -> dict[str, Tensor]:
    [(before, _)] = run_ranks(1, train_cases, [(kind, "split", "table_wise", "stock")])[0].values()
    config = config_of_case("split", "table_wise", "stock")
    columns = columns_of(kind)
    return train_by_hand(before, batches_of(kind, world_size), columns.labels, config, columns=columns)


def assert_trained_by_the_equations(ranks: list, cases: Iterable[Case]) -> None:
    for rank, case in itertools.product(ranks, cases):
        before, after = rank[case]
        expected = by_hand(case[0], len(ranks))
        assert after.keys() == expected.keys()
        for name, weight in after.items():
            # Rounding in sums of another order, of weights of up to 2; see test_sharded.
            torch.testing.assert_close(
                weight, expected[name], rtol=0, atol=2e-5, msg=lambda t, n=(case, name): f"{n}: {t}"
            )
            assert (weight - before[name]).abs().max() > 1e-4, (case, name)


def test_every_type_trains_sums_and_means_of_weighted_ids_of_any_width_by_the_equations():
    assert_trained_by_the_equations(run_ranks(2, train_cases, CASES), CASES)


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "ranks_per_host"), [(2, 2), (4, 2), (8, 4)])
def test_every_layout_and_input_distribution_does_the_same_on_more_ranks(ranks: int, ranks_per_host: int):
    cases = ALL_CASES if ranks < 8 else [case for case in ALL_CASES if case[1:] != ("split", "stock")]
    trained = run_ranks(ranks, train_cases, cases, ranks_per_host=ranks_per_host, timeout=900)
    assert_trained_by_the_equations(trained, cases)
