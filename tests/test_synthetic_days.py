"""Synthetic days: vectors that move, users and items that leave and come, and what is known of every day."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from stem_torchrec.config import DaysConfig, SyntheticConfig
from stem_torchrec.data.schema import load_schema
from stem_torchrec.data.synthetic_days import Day, days_of, write_days
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.runtime.errors import UserError

SMALL = DaysConfig(
    days=3, rows_per_day=2000, new_users=0.1, new_items=0.2, world=SyntheticConfig(users=60, items=40, tags=20)
)
STILL = replace(SMALL, drift=0.0, new_users=0.0, new_items=0.0)


def facts_of(config: DaysConfig) -> list[dict[str, Any]]:
    return [day.draw(config.rows_per_day)[1] for day in days_of(config)]


def test_a_world_without_drift_stays_and_yesterdays_truth_is_todays() -> None:
    first, second, third = days_of(STILL)
    for day in (second, third):
        assert np.array_equal(day.users.numbers, first.users.numbers)
        assert np.array_equal(day.world.items.vectors, first.world.items.vectors)
        facts = day.draw(500)[1]
        assert facts["stale_auc"] == facts["best_auc"]
        assert (facts["new_users"], facts["new_items"]) == (0, 0)


def test_days_without_drift_have_rows_of_their_own() -> None:
    first, second, _ = (day.draw(500)[0] for day in days_of(STILL))
    assert first["item_id"] != second["item_id"]
    assert first["day"].to_pylist() == [1] * 500
    assert second["row"].to_pylist() == list(range(500))


def test_yesterdays_truth_is_worse_today_and_the_worse_the_more_drifts() -> None:
    lost = []
    for drift in (0.02, 0.1, 0.5):
        # On 40,000 rows an AUC of the rarer task has a standard deviation of 0.004, differences on the same rows less.
        facts = facts_of(replace(STILL, drift=drift, rows_per_day=40_000))[1:]
        losses = [day["best_auc"][task] - day["stale_auc"][task] for day in facts for task in ("finish", "like")]
        assert min(losses) > 0
        lost.append(np.mean(losses))
    assert lost == sorted(lost)


def test_new_users_and_items_alone_make_yesterdays_truth_worse() -> None:
    for day in facts_of(replace(SMALL, drift=0.0, rows_per_day=40_000))[1:]:
        assert day["stale_auc"]["finish"] < day["best_auc"]["finish"]


def test_drift_keeps_how_much_the_ids_tell() -> None:
    # The deviation of a small world's logits varies by a sixth; the mean of 12 worlds by a twentieth.
    last = []
    for seed in range(12):
        *_, day = days_of(replace(SMALL, days=10, drift=0.3, world=replace(SMALL.world, seed=seed)))
        last += day.world.draw("days", day.number, 2000)[1].std(axis=1).tolist()
    assert np.mean(last) == pytest.approx(SMALL.world.signal, rel=0.15)


def test_who_leaves_never_comes_back_and_the_shares_are_those_asked_for() -> None:
    config = replace(SMALL, days=30, world=replace(SMALL.world, users=400, items=300))
    gone: set[int] = set()
    before: Day | None = None
    changed = []
    for day in days_of(config):
        present = set(day.users.numbers.tolist())
        assert len(present) == 400
        assert not present & gone
        if before is not None:
            earlier = set(before.users.numbers.tolist())
            gone |= earlier - present
            assert min(present - earlier) == day.users.first_new
            changed.append([len(present - earlier) / 400, (day.items.numbers != before.items.numbers).mean()])
        before = day
    # 29 nights: five standard deviations of the mean share are 0.014 and 0.022.
    assert np.abs(np.mean(changed, axis=0) - [0.1, 0.2]).max() < 0.022


def test_a_user_who_stays_keeps_the_segment_and_a_new_one_is_known_by_it_on_the_eve() -> None:
    first, second, _ = days_of(replace(SMALL, drift=0.0))
    new = second.users.numbers >= second.users.first_new
    assert 0 < new.sum() < len(new)
    assert np.array_equal(second.users.population.cluster[~new], first.users.population.cluster[~new])
    assert np.array_equal(second.eve.users.cluster, second.users.population.cluster)
    assert (second.eve.users.of_id[:, new] == 0).all()
    assert np.array_equal(second.eve.users.of_id[:, ~new], first.users.population.of_id[:, ~new])


def test_facts_are_those_of_the_rows(tmp_path: Path) -> None:
    config = replace(SMALL, world=replace(SMALL.world, missing=(0.3, 0.0)))
    facts = write_days(config, str(tmp_path / "raw"))
    assert json.loads((tmp_path / "raw/facts.json").read_text()) == facts
    for day in days_of(config):
        rows, known = pq.read_table(tmp_path / f"raw/day_{day.number:04}.parquet"), facts[str(day.number)]
        _, logits, _ = day.world.draw("days", day.number, config.rows_per_day)
        labeled = rows["finish"].is_valid().to_numpy()
        auc = roc_auc_score(rows["finish"].to_numpy()[labeled], logits[0][labeled])
        assert known["best_auc"]["finish"] == pytest.approx(auc, abs=1e-12)
        assert known["new_items"] == np.mean(rows["item_id"].to_numpy() >= day.items.first_new)


def test_the_spec_that_is_written_makes_a_log_of_a_day_and_grows_it(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_days(replace(SMALL, days=2), str(raw))
    logs = [str(tmp_path / "1"), str(tmp_path / "2")]
    for day, log in enumerate(logs, 1):
        earlier = {"vocabularies": logs[0], "grow": True} if day == 2 else {}
        prepare_log(
            PrepareOptions(spec=str(raw / "spec.yaml"), set=(f"where=day = {day}",), out=log, report=False, **earlier)
        )
    first, second = map(load_schema, logs)
    assert first.splits["train"].rows + first.splits["valid"].rows == 2000
    assert 60 < first.splits["valid"].rows < 140  # 100 in the mean, with a standard deviation of 10.
    assert first.label_names == ("finish", "like")
    sizes = [{each.name: each.num_embeddings for each in schema.sparse_features} for schema in (first, second)]
    assert sizes[1]["item_id"] > sizes[0]["item_id"]
    assert sizes[1]["user_segment"] >= sizes[0]["user_segment"]


def test_the_same_settings_write_the_same_bytes(tmp_path: Path) -> None:
    for name, config in (("a", SMALL), ("b", SMALL), ("c", replace(SMALL, world=replace(SMALL.world, seed=1)))):
        write_days(config, str(tmp_path / name))
    days = [f"day_{number:04}.parquet" for number in (1, 2, 3)]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*days, "facts.json", "spec.yaml"}
    for day in days:
        a, b, c = ((tmp_path / name / day).read_bytes() for name in "abc")
        assert a == b != c


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"days": 0}, "days"),
        ({"drift": 1.1}, "drift"),
        ({"world": replace(SMALL.world, users=0)}, "users"),
        ({"world": replace(SMALL.world, tasks=("day", "like"))}, "a task is called day"),
    ],
)
def test_bad_values_are_one_sentence_and_write_nothing(tmp_path: Path, wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        write_days(replace(SMALL, **wrong), str(tmp_path / "raw"))
    assert not list(tmp_path.iterdir())
