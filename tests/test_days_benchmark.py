"""The walk over days: the logs of each day, the AUC before it is trained on, and what the report says of who wins."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.config import DaysConfig, SyntheticConfig
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.schema import load_schema
from stem_torchrec.data.synthetic_days import write_days
from stem_torchrec.preparation.specs.installed_specs import spec_path
from stem_torchrec.preparation.specs.spec_file import read_spec
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run

from earlier_versions import forget
from kuairand_files import LOG, LOG_FILE, exposure, write_csv, write_raw
from prequential.collisions import hashed_values
from prequential.day_logs import DayLogs
from prequential.options import DaysOptions, read_command_line
from prequential.policies import LogKind, Walker
from prequential.report import verdict_of
from prequential.scores import DayRows, score_days
from prequential.walk import identity_of_now, walk

DAYS = DaysConfig(
    days=4, rows_per_day=1500, new_users=0.1, new_items=0.2, world=SyntheticConfig(users=60, items=40, tags=20)
)


def drawn_days(days: int, *, users: int = 100, rows: int = 600, gain: float = 0.5) -> dict[int, DayRows]:
    """Days on which the policy `worse` sees the truth through more noise than `better`, the more the larger `gain`."""
    rng = np.random.default_rng(0)
    tested = {}
    for day in range(2, 2 + days):
        truth = rng.normal(size=rows)
        positive = rng.random(rows) < 1 / (1 + np.exp(-truth))
        noise = rng.normal(size=(2, rows))
        scores = {"better": [truth + noise[0]], "worse": [truth + (1 + gain) * noise[1]]}
        tested[day] = DayRows(positive, rng.integers(users, size=rows), scores)
    return tested


def test_the_prequential_auc_is_the_mean_of_the_days_in_which_each_counts_the_same() -> None:
    days = drawn_days(3)
    short = {name: [by_seed[0][:200]] for name, by_seed in days[2].scores.items()}
    days[9] = DayRows(days[2].positive[:200], days[2].users[:200], short)
    scores = score_days(days, draws=20)
    for name in ("better", "worse"):
        aucs = [roc_auc_score(each.positive, each.scores[name][0]) for each in days.values()]
        assert [scores.days[day].whole[name] for day in days] == pytest.approx(aucs, abs=1e-12)
        assert scores.mean.whole[name] == pytest.approx(np.mean(aucs), abs=1e-12)
        assert np.allclose(scores.mean.drawn[name], np.mean([scores.days[day].drawn[name] for day in days], axis=0))
    assert scores.rows == {2: 600, 3: 600, 4: 600, 9: 200}
    assert scores.positives[9] == days[9].positive.sum()


def test_a_draw_takes_a_user_on_all_days_or_on_none() -> None:
    # The same rows on two days: a draw of users changes both by the same, so their mean varies as much as one day.
    (rows,) = drawn_days(1).values()
    scores = score_days({1: rows, 2: rows}, draws=50)
    assert np.array_equal(scores.days[1].drawn["better"], scores.days[2].drawn["better"])
    assert scores.mean.drawn["better"].std() == pytest.approx(scores.days[1].drawn["better"].std())


def test_seeds_are_averaged_and_the_same_predictions_differ_by_nothing() -> None:
    days = {
        day: replace(each, scores={"a": [*each.scores["better"], *each.scores["worse"]], "b": each.scores["worse"] * 2})
        for day, each in drawn_days(2).items()
    }
    scores = score_days(days, draws=30)
    for day in days:
        assert scores.days[day].whole["a"] == pytest.approx(np.mean(scores.seeds[day]["a"]))
        assert scores.seeds[day]["b"][0] == scores.seeds[day]["a"][1]
    twice = {day: replace(each, scores=dict.fromkeys("ab", each.scores["a"])) for day, each in days.items()}
    same = score_days(twice, draws=30)
    assert same.mean.difference("a", "b").numbers == {"value": 0, "low": 0, "high": 0, "p": 1}


def test_who_wins_is_said_in_words_also_where_it_is_a_loss() -> None:
    scores = score_days(drawn_days(4), draws=200)
    won, lost = (scores.mean.difference(*pair) for pair in (("better", "worse"), ("worse", "better")))
    assert verdict_of(won, "scratch") == f"beats scratch by {won.value:.4f} [{won.low:.4f}, {won.high:.4f}]"
    assert verdict_of(lost, "scratch") == f"loses to scratch by {won.value:.4f} [{won.low:.4f}, {won.high:.4f}]"
    alike = Interval(0.001, -0.002, 0.004, 0.4, 0.4, level=0.05)
    assert verdict_of(alike, "scratch") == "cannot be told from scratch, +0.0010 [-0.0020, +0.0040]"


def test_a_day_with_too_few_users_has_no_interval_and_all_days_together_may_have_one() -> None:
    days = drawn_days(3, users=50, rows=60)
    days = {
        day: replace(each, positive=each.positive & (np.arange(60) < 30), users=each.users + 50 * day)
        for day, each in days.items()
    }
    scores = score_days(days, draws=50)
    for each in scores.days.values():
        assert np.isnan(each.difference("better", "worse").low)
        assert re.fullmatch(
            r"cannot be told from worse, [+-]0\.\d{4}", verdict_of(each.difference("better", "worse"), "worse")
        )
    assert scores.mean.difference("better", "worse").low < scores.mean.difference("better", "worse").high


@pytest.fixture(scope="module")
def kuairand_days(tmp_path_factory: pytest.TempPathFactory) -> DayLogs:
    """KuaiRand-Pure of 1 and 2 May, in small: user 40 and video 12 come on 2 May."""
    folder = tmp_path_factory.mktemp("days")
    raw = write_raw(folder / "raw")
    rows = [
        exposure(user, video, day, duration_ms=900 * video, long_view=(user + video) % 2, is_like=(user + day) % 2)
        for day in (1, 2)
        for user in (*range(1, 30), *(40,) * (day - 1))
        for video in (10, 11, 12)[: day + 1]
    ]
    write_csv(raw / LOG_FILE, LOG, rows)
    # Each of the features of KuaiRand would take time.
    settings = (f"raw={raw}", "features={user_id: null, video_id: null, tab: null}")
    options = DaysOptions(
        spec="kuairand_pure", set=settings, day="date", days=(20220501, 20220502), hashed=("user_id", "tab")
    )
    return DayLogs(options, folder)


def rows_of(log: Path, split: str) -> list[tuple[int, int]]:
    table = pq.read_table(log / split)
    return sorted(zip(table["group_user_id"].to_pylist(), table["time_ms"].to_pylist(), strict=True))


def test_a_row_is_in_the_same_part_of_the_log_of_its_day_and_of_all_days(kuairand_days: DayLogs) -> None:
    first, second = (kuairand_days.to_train(day, "days") for day in kuairand_days.options.days)
    both = kuairand_days.to_train(20220502, "so_far")
    assert len(rows_of(second, "train") + rows_of(second, "valid")) == 30 * 3
    for split in ("train", "valid"):
        assert rows_of(first, split)
        assert rows_of(both, split) == sorted(rows_of(first, split) + rows_of(second, split))


@pytest.mark.parametrize("kind", ["days", "so_far"])
def test_a_day_is_tested_with_the_ids_of_the_day_before_on_the_rows_that_it_trains_later(
    kuairand_days: DayLogs, kind: LogKind
) -> None:
    trained, tested = kuairand_days.to_train(20220501, kind), kuairand_days.to_test(20220502, kind)
    later = pq.read_table(kuairand_days.to_train(20220502, "days") / "train")
    rows = pq.read_table(tested / "train")
    assert rows["group_user_id"] == later["group_user_id"]
    assert load_schema(str(tested)).sparse_features == load_schema(str(trained)).sparse_features
    new = (rows["group_user_id"].to_numpy() == 40).nonzero()[0]
    assert set(rows["user_id"].to_numpy()[new]) == {0}
    # The day's own log has an id for it, behind those of the day before.
    known = load_schema(str(kuairand_days.to_train(20220501, "days"))).sparse_features[0].num_embeddings
    assert known <= min(later["user_id"].to_numpy()[new])
    assert kuairand_days.new_ids(20220502)["user_id"] == max(later["user_id"].to_pylist()) + 1 - known


def test_a_log_is_made_once_and_its_seconds_are_kept(kuairand_days: DayLogs) -> None:
    log = kuairand_days.to_train(20220501, "days")
    made, seconds = (log / "schema.json").stat().st_mtime_ns, kuairand_days.seconds(20220501, "days")
    assert seconds > 0
    assert kuairand_days.to_train(20220501, "days") == log
    assert (log / "schema.json").stat().st_mtime_ns == made
    assert kuairand_days.seconds(20220501, "days") == seconds


def test_hashed_ids_take_the_rows_of_a_vocabulary_and_their_collisions_are_counted(kuairand_days: DayLogs) -> None:
    log = kuairand_days.to_train(20220501, "hashed")
    by_vocabulary, hashed = (
        {each.name: each.num_embeddings for each in load_schema(str(folder)).sparse_features}
        for folder in (kuairand_days.to_train(20220501, "days"), log)
    )
    assert hashed == by_vocabulary
    rows = pq.read_table(log / "train", columns=["group_user_id", "user_id"]).to_pandas()
    sharing = rows.groupby("user_id").group_user_id.nunique()
    users, tabs = hashed_values(kuairand_days)
    # Who comes once has no id of a vocabulary.
    assert users.values == rows.group_user_id.nunique() > users.with_id == by_vocabulary["user_id"] - 1
    assert users.sharing == sharing[sharing > 1].sum() / users.values > 0
    assert users.sharing_rows == pytest.approx(rows.user_id.isin(sharing[sharing > 1].index).mean())
    most = rows.groupby(["user_id", "group_user_id"]).size().groupby("user_id").max().sum()
    assert users.lesser_rows == pytest.approx(1 - most / len(rows))
    assert (tabs.values, tabs.sharing) == (1, 0)


def test_a_feature_without_a_vocabulary_is_not_hashed(kuairand_days: DayLogs) -> None:
    logs = replace(kuairand_days, options=replace(kuairand_days.options, hashed=("time_ms",)))
    with pytest.raises(UserError) as error:
        logs.check_hashed()
    words = "--hashed names 'time_ms', which has no vocabulary of its own; user_id, video_id, tab do."
    assert str(error.value) == words


def test_a_condition_of_the_spec_stays(tmp_path: Path) -> None:
    write_days(replace(DAYS, days=2), str(tmp_path / "raw"))
    options = DaysOptions(
        spec=str(tmp_path / "raw/spec.yaml"), set=("where=user_id < 30 or item_id < 2",), day="day", days=(1, 2)
    )
    rows = pq.read_table(DayLogs(options, tmp_path).to_train(1, "days") / "train")
    raw = pq.read_table(tmp_path / "raw/day_0001.parquet").to_pandas()
    kept = raw[(raw.user_id < 30) | (raw.item_id < 2)]
    assert 0.9 < len(rows) / len(kept) < 1
    assert set(rows["group_user_id"].to_pylist()) == set(kept.user_id)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ([], "--spec is missing; --help shows what it takes."),
        (["--spec", "adult"], "--day is missing; --help shows what it takes."),
        (["--spec", "adult", "--day", "age", "--days", "3"], "--days is 3, but must be two days or more, in order."),
        (
            ["--spec", "adult", "--day", "age", "--days", "3", "2"],
            "--days is 3 2, but must be two days or more, in order.",
        ),
        (
            ["--spec", "adult", "--day", "age", "--days", "2", "3", "--policies", "scratch", "scratch"],
            "--policies is scratch scratch, but needs values, each of them once.",
        ),
        (
            ["--spec", "adult", "--day", "age", "--days", "2", "3", "--data.path", "LOG"],
            "--data.path is chosen for each day; leave it out.",
        ),
        (
            ["--spec", "adult", "--day", "age", "--days", "2", "3", "--policies", "hashed", "continue"],
            "--hashed is empty, but hashed needs the features whose ids it hashes.",
        ),
        (
            ["--spec", "adult", "--day", "age", "--days", "2", "3", "--policies", "to_hashed", "--hashed", "sex"],
            "--switch is 0, but must be one of --days, behind the first and before the last, for to_hashed.",
        ),
        (
            ["--spec", "adult", "--day", "age", "--days", "2", "3", "--train.epoch", "1"],
            "unknown option '--train.epoch'; did you mean '--train.epochs'? --help lists all.",
        ),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_sentence(line: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read_command_line([*line, "--out", str(tmp_path)])
    assert str(error.value) == sentence


@pytest.mark.parametrize("name", ["adult", "kuairand_pure"])
def test_a_walk_of_a_version_without_some_options_is_the_same_walk(name: str) -> None:
    spec = to_dict(read_spec(spec_path(name), ["raw=raw"]))
    before = {field: value for field, value in spec.items() if field not in ("row_group_size", "weight")}
    assert identity_of_now({"spec": before}) == {"hashed": [], "switch": None, "spec": spec}
    with pytest.raises(UserError, match="there is no field 'new_field'"):
        identity_of_now({"spec": {**spec, "new_field": 1}})


@pytest.mark.long
def test_a_walk_reports_every_day_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    facts, policies = write_days(DAYS, str(tmp_path / "raw")), ("continue", "fresh", "from_hashed", "scratch")
    line = ["--spec", str(tmp_path / "raw/spec.yaml"), "--day", "day", "--recipe", "tiny", "--draws", "30"]
    line += ["--policies", *policies, "--hashed", "user_id", "item_id", "--switch", "2"]
    line += ["--facts", str(tmp_path / "raw/facts.json"), "--out", str(tmp_path / "out")]
    walk(*read_command_line([*line, "--days", "1", "2", "3"]))
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/runs").rglob("config.yaml")}
    assert len(runs) == 2 * len(policies)
    walk(*read_command_line([*line, "--days", "1", "2", "3", "4"]))
    assert {path: path.stat().st_mtime_ns for path in runs} == runs

    rows = pq.read_table(tmp_path / "out/days.parquet").to_pylist()
    assert [(row["day"], row["policy"]) for row in rows if row["task"] == "like"] == [
        (day, policy) for policy in policies for day in (2, 3, 4)
    ]
    aucs = {(row["day"], row["policy"]): row["auc"] for row in rows if row["task"] == "finish"}
    # The first day's model begins anew under every policy, on the same rows.
    assert aucs[2, "continue"] == aucs[2, "fresh"] == aucs[2, "scratch"]
    assert aucs[2, "from_hashed"] != aucs[2, "continue"]
    assert len({tuple(aucs[3, policy]) for policy in policies}) == len(policies)
    trained = {(row["policy"], row["day"]): row["trained_rows"] for row in rows}
    assert trained["scratch", 3] == trained["continue", 2] + trained["continue", 3]
    unseen = {(row["policy"], row["day"]): row["unseen"]["item_id"] for row in rows}
    # A fifth of the items are new.
    assert 0.05 < unseen["continue", 3] < 0.4
    report = (tmp_path / "out/days.md").read_text()
    assert re.search(r"^- \*\*continue\*\* .* trains for \d+ s, \d+% of the \d+ s of scratch", report, re.MULTILINE)
    assert f"{facts['3']['best_auc']['like']:.4f}" in report
    # As an earlier version has written it, whose specs did not have these fields.
    forget(tmp_path / "out/identity.json", "walk.spec.weight", "walk.spec.row_group_size")
    with pytest.raises(UserError, match=r"holds another walk, where first is 1 and not 0; give"):
        walk(*read_command_line([*line, "--days", "0", "2", "3"]))


@pytest.mark.long
def test_ids_that_have_grown_are_predicted_as_unseen_values(tmp_path: Path) -> None:
    write_days(replace(DAYS, days=2), str(tmp_path / "raw"))
    line = [
        "--spec",
        str(tmp_path / "raw/spec.yaml"),
        "--day",
        "day",
        "--days",
        "1",
        "2",
        "--policies",
        "continue",
        "fresh",
    ]
    options, rest = read_command_line([*line, "--recipe", "tiny", "--draws", "5", "--out", str(tmp_path / "out")])
    walk(options, rest)
    logs = DayLogs(options, tmp_path / "out")
    grown = EvaluationData(path=str(logs.to_train(2, "days")))
    run, out = Walker(tmp_path / "out", "continue", 0).run(1), tmp_path / "grown"
    with join_process_group() as process:
        evaluate_run(EvaluateConfig(run=str(run), data=grown, split="train", predictions=str(out)), process)
    by_row = [pq.read_table(path).sort_by("row") for path in (out, tmp_path / "out/predictions/continue/seed_0/2")]
    assert sum(logs.new_ids(2).values()) > 0
    assert by_row[0].equals(by_row[1])
