"""Batch size and evaluations that follow from the number of rows and ranks."""

from dataclasses import replace

import pytest

from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.steps_by_rows import batch_size_for, choose_steps, describe_steps, eval_every_for


@pytest.mark.parametrize(
    ("rows", "ranks", "batch_size"),
    [
        (149_732, 1, 1024),
        (149_732, 2, 512),
        (149_732, 3, 256),
        (116_508, 1, 512),
        (116_509, 1, 1024),
        (874_000, 1, 2048),
        (874_000, 2, 1024),
        (20_000_000, 1, 4096),
        (275_800_000, 16, 2048),
        (26_001, 1, 256),
        (26_001, 16, 32),
        (10, 1, 32),
        (1, 1024, 32),
    ],
)
def test_a_batch_of_all_ranks_is_the_largest_power_of_two_up_to_three_times_the_root_of_the_rows(
    rows: int, ranks: int, batch_size: int
) -> None:
    assert batch_size_for(rows, ranks) == batch_size


@pytest.mark.parametrize(("steps", "every"), [(147, 36), (4_000_000, 1_000_000), (64, 16), (40, 16), (16, 16), (5, 5)])
def test_an_epoch_has_four_evaluations_or_fewer_where_they_would_be_less_than_16_steps_apart(
    steps: int, every: int
) -> None:
    assert eval_every_for(steps) == every


def test_what_a_configuration_names_is_kept_and_the_rest_follows_from_it() -> None:
    config = RECIPES["log"]()
    config = replace(config, train=replace(config.train, eval_every=0))
    batch = choose_steps(replace(config, data=replace(config.data, batch_size=100)), 20_000, 2)
    assert (batch.data.batch_size, batch.train.eval_every) == (100, 25)
    evaluations = choose_steps(replace(config, train=replace(config.train, eval_every=7)), 149_732, 2)
    assert (evaluations.data.batch_size, evaluations.train.eval_every) == (512, 7)
    once = choose_steps(replace(config, train=replace(config.train, eval_every=None)), 149_732, 2)
    assert once.train.eval_every is None
    assert once.balance.period == 500
    paper = choose_steps(replace(config, balance=replace(config.balance, period=0)), 149_732, 2)
    # An epoch of batches of 512 on two ranks.
    assert paper.balance.period == 147
    for recipe in ("synthetic", "tiny", "kuairand_pure", "tiktok"):
        assert choose_steps(RECIPES[recipe](), 1000, 1) == RECIPES[recipe]()


def test_eps_goes_with_the_rows_of_a_step_of_all_ranks_for_adagrad_alone() -> None:
    config = RECIPES["log"]()
    chosen = choose_steps(config, 149_732, 2)
    assert chosen.sparse.eps == pytest.approx(0.1 / 1024)
    assert choose_steps(chosen, 10, 1).sparse.eps == chosen.sparse.eps
    adam = replace(config, sparse=replace(config.sparse, name="adam"))
    assert choose_steps(adam, 149_732, 2).sparse.eps == 1e-8


def test_one_line_tells_what_a_run_takes_and_why() -> None:
    config = choose_steps(RECIPES["log"](), 149_732, 2)
    assert describe_steps(config, 149_732, 2) == (
        "settings: recipe log (the default with --data.path): batches of 512 for 149,732 rows on 2 ranks, "
        "an evaluation after each epoch of 147 steps, tables begin anew with each epoch, "
        f"stops after {config.train.patience} without a gain"
    )
    once = replace(config, train=replace(config.train, fresh_tables=False, epochs=1))
    assert describe_steps(once, 149_732, 1).endswith("an evaluation after the one epoch of 293 steps")
    endless = replace(config, recipe="", train=replace(config.train, patience=None, epochs=1, eval_every=36))
    assert describe_steps(endless, 149_732, 1, resumed=True) == (
        "settings: batches of 512, as the run had, for 149,732 rows on 1 rank, an evaluation every 36 of 293 steps"
    )
