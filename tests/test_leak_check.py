"""The leak check: exact AUCs of each feature alone, the rule by which one is named, logs with and without a leak."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.preparation.engines.duckdb_engine import DuckDBEngine
from stem_torchrec.preparation.report.counts import count_ids, leading_digits, with_labels
from stem_torchrec.preparation.report.leak_check import (
    LoneAuc,
    auc_of_scores,
    in_buckets,
    leak_warnings,
    scores_of_ids,
    scores_of_lists,
)
from stem_torchrec.preparation.report.leak_rule import BUCKETS, SMOOTHING

from raw_logs.ali_ccp import write_ali_ccp
from raw_logs.kuairand import write_kuairand
from report_tables import by, number, prepare, tables, warnings_of

ROOT = Path(__file__).parents[1]
REAL = ROOT / "../shared/data"
LABELS = ("click", "buy")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DuckDBEngine]:
    engine = DuckDBEngine(tmp_path, memory="500MB", threads=1)
    yield engine
    engine.close()


@pytest.fixture
def frames(tmp_path: Path) -> dict[str, pd.DataFrame]:
    """Train and valid with an id, a list of ids and a number, which may be missing, and labels, the second one as well.

    They are written to folders of these names.
    """
    rng, frames = np.random.default_rng(0), {}
    for split, rows in (("train", 3000), ("valid", 1500)):
        ids = rng.zipf(1.4, rows) % 200 + (rng.random(rows) < 0.1) * (1000 if split == "valid" else 500)
        lists = [list(map(int, rng.zipf(1.6, n) % 60)) for n in rng.integers(0, 4, rows)]
        price = np.where(rng.random(rows) < 0.1, np.nan, np.round(rng.normal(0, 50, rows), 1))
        liking = 0.2 + ids % 5 / 10 + np.nan_to_num(price) / 500
        click = (rng.random(rows) < liking).astype(float)
        buy = np.where(click == 1, rng.random(rows) < 0.3, np.nan).astype(float)
        frame = pd.DataFrame({"id": ids, "tags": lists, "price": price, "click": click, "buy": buy})
        frame["id"] = frame["id"].astype("Int64").where(rng.random(rows) > 0.05)
        (tmp_path / split).mkdir()
        frame.to_parquet(tmp_path / split / "part.parquet", index=False)
        frames[split] = frame
    return frames


def rates_of(frames: dict[str, pd.DataFrame]) -> list[float]:
    return [float(frames["train"][label].mean()) for label in LABELS]


def smoothed(train: pd.DataFrame, column: str, label: str) -> pd.Series:
    """The rate of each id, by pandas; one that is missing is an id like others."""
    known = train[train[label].notna()]
    groups = known.groupby(column, dropna=False)[label].agg(["sum", "count"])
    return (groups["sum"] + SMOOTHING * known[label].mean()) / (groups["count"] + SMOOTHING)


def aucs(engine: DuckDBEngine, scores: object) -> dict[int, float]:
    rows = engine.rows(auc_of_scores(scores))  # type: ignore[arg-type]
    return {task: won / (positives * negatives) for task, won, positives, negatives in rows}


def expected_auc(valid: pd.DataFrame, label: str, score: pd.Series) -> float:
    known = valid[label].notna()
    return float(roc_auc_score(valid.loc[known, label], score[known]))


def test_the_auc_of_an_id_is_exact(engine: DuckDBEngine, tmp_path: Path, frames: dict[str, pd.DataFrame]) -> None:
    parts = {split: engine.parquet(tmp_path / split) for split in frames}
    counts = count_ids({split: with_labels(part, part["id"], LABELS) for split, part in parts.items()}, 2)
    measured = aucs(engine, scores_of_ids(counts, rates_of(frames)))
    for i, label in enumerate(LABELS):
        rates = smoothed(frames["train"], "id", label)
        score = frames["valid"]["id"].map(rates).astype(float)
        score = score.where(frames["valid"]["id"].notna(), rates[rates.index.isna()].iloc[0])
        score = score.fillna(rates_of(frames)[i])
        # Both add whole numbers of pairs, which doubles hold exactly.
        assert measured[i] == pytest.approx(expected_auc(frames["valid"], label, score), rel=1e-12)


def test_the_auc_of_lists_is_that_of_the_mean_of_their_rates(
    engine: DuckDBEngine, tmp_path: Path, frames: dict[str, pd.DataFrame]
) -> None:
    parts = {split: engine.parquet(tmp_path / split) for split in frames}
    counts = count_ids({split: with_labels(part, part["tags"], LABELS) for split, part in parts.items()}, 2)
    columns = {f"label_{i}": parts["valid"][label].cast("int64") for i, label in enumerate(LABELS)}
    lists = count_ids({"valid": parts["valid"].select(id="tags", **columns)}, 2)
    measured = aucs(engine, scores_of_lists(lists, counts, rates_of(frames)))
    for i, label in enumerate(LABELS):
        prior = rates_of(frames)[i]
        elements = frames["train"].explode("tags").dropna(subset=["tags", label])
        groups = elements.groupby("tags")[label].agg(["sum", "count"])
        rates = (groups["sum"] + SMOOTHING * prior) / (groups["count"] + SMOOTHING)
        score = frames["valid"]["tags"].map(
            lambda tags, rates=rates, prior=prior: (
                round(np.mean([rates.get(tag, prior) for tag in tags]), 12) if tags else prior
            )
        )
        assert measured[i] == pytest.approx(expected_auc(frames["valid"], label, score), rel=1e-9)


def test_the_auc_of_a_number_is_that_of_its_bucket(
    engine: DuckDBEngine, tmp_path: Path, frames: dict[str, pd.DataFrame]
) -> None:
    parts = {split: engine.parquet(tmp_path / split) for split in frames}
    keys = {split: with_labels(part, leading_digits(part["price"]), LABELS) for split, part in parts.items()}
    train, valid = frames["train"], frames["valid"]
    rows = int(train["price"].notna().sum())
    buckets = in_buckets(count_ids(keys, 2), 2, rows)
    measured = aucs(engine, scores_of_ids(buckets, rates_of(frames)))

    def bucket(price: pd.Series) -> pd.Series:
        # One decimal below 100 is three digits at most, so that no two prices have the same ones; above it is rounded.
        digits = price.where(price.abs() < 100, np.sign(price) * np.floor(price.abs() + 0.5))
        known = np.sort(
            train["price"]
            .where(train["price"].abs() < 100, np.sign(train["price"]) * np.floor(train["price"].abs() + 0.5))
            .dropna()
        )
        return pd.Series(np.searchsorted(known, digits, "left") * BUCKETS // rows, digits.index).where(
            price.notna(), -1
        )

    for i, label in enumerate(LABELS):
        rates = smoothed(train.assign(bucket=bucket(train["price"])), "bucket", label)
        score = bucket(valid["price"]).map(rates).fillna(rates_of(frames)[i])
        assert measured[i] == pytest.approx(expected_auc(valid, label, score), rel=1e-9)


def lone(**values: float) -> dict[str, dict[str, LoneAuc]]:
    return {"buy": {name: LoneAuc(auc, 500, 500) for name, auc in values.items()}}


def test_a_feature_that_tells_the_label_is_named_with_its_numbers() -> None:
    assert leak_warnings(lone(user=0.7, item=0.65, paid=0.99)) == [
        "feature 'paid' leaks the label 'buy': its rate of train alone has an AUC of 0.990 on valid, where the median "
        "of the other 2 features is 0.675. Leave it out unless it is known before the exposure."
    ]
    assert leak_warnings(lone(user=0.7, item=0.6, tag=0.55, stage=0.9)) == [
        "feature 'stage' may leak the label 'buy': its rate of train alone has an AUC of 0.900 on valid, where the "
        "median of the other 3 features is 0.600. Leave it out unless it is known before the exposure."
    ]
    assert leak_warnings(lone(paid=0.96)) == [
        "feature 'paid' leaks the label 'buy': its rate of train alone has an AUC of 0.960 on valid. Leave it out "
        "unless it is known before the exposure."
    ]


def test_a_feature_is_not_named_for_being_the_best_one() -> None:
    # The numbers of Adult's never_married without relationship, and of a shop's purchases.
    assert leak_warnings(lone(age=0.851, occupation=0.628, sex=0.588, education=0.575, race=0.522)) == []
    assert leak_warnings(lone(item=0.789, user=0.578)) == []
    # Where all features tell much, one that tells a little more is not far above them.
    assert leak_warnings(lone(a=0.9, b=0.85, c=0.84, d=0.8)) == []
    # Users differ by nature, but no user is the label.
    assert leak_warnings(lone(user=0.9, item=0.6, tag=0.55, hour=0.52), group=["user"]) == []
    assert len(leak_warnings(lone(user=0.96, item=0.6, tag=0.55, hour=0.52), group=["user"])) == 1


def test_few_rows_name_no_feature() -> None:
    assert leak_warnings({"buy": {"paid": LoneAuc(1.0, 19, 5000)}}) == []
    assert len(leak_warnings({"buy": {"paid": LoneAuc(1.0, 20, 5000)}})) == 1


def leaks(printed: list[str]) -> list[tuple[str, str]]:
    """Feature and label of each leak that is named."""
    return [
        (line.split("'")[1], line.split("'")[3])
        for line in warnings_of(printed)
        if "leak the" in line or "leaks the" in line
    ]


@pytest.mark.long
def test_a_field_of_ali_ccp_that_tells_the_click_is_named(tmp_path: Path) -> None:
    write_ali_ccp(tmp_path / "raw", 4000, leak="301")
    printed = prepare("ali_ccp", tmp_path / "log", [f"raw={tmp_path / 'raw'}"])
    assert ("f301", "click") in leaks(printed)
    assert {feature for feature, _ in leaks(printed)} == {"f301"}
    rows = by(tables((tmp_path / "log/report.md").read_text())["What each feature tells alone"][0], "feature")
    assert number(rows[("f301",)]["click"]) == 1


@pytest.mark.long
def test_the_play_time_of_kuairand_is_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    write_kuairand(tmp_path / "raw", 4000)
    content = parse_yaml((ROOT / "datasets/kuairand_pure.yaml").read_text())
    # Fewer features, to be fast.
    features = {name: value for name, value in content["features"].items() if "onehot" not in name}
    # The drawn play time of a video that was not watched has no upper end, so that it tells less than a real one.
    features["play"] = {"value": "case when play_time_ms >= 0.8 * duration_ms then 1 else 0 end"}
    content["sources"]["log"]["columns"]["play_time_ms"] = "int"
    (tmp_path / "spec.yaml").write_text(to_yaml(content | {"features": features}))
    printed = prepare(tmp_path / "spec.yaml", tmp_path / "log", [f"raw={tmp_path / 'raw'}"])
    assert ("play", "long_view") in leaks(printed)
    assert {feature for feature, _ in leaks(printed)} == {"play"}
    by_name = "feature 'play' reads 'play_time_ms', which has 'play_time' in its name"
    assert [each for each in warnings_of(printed) if each.startswith(by_name)]


@pytest.mark.skipif(not (REAL / "adult").exists(), reason="Adult is not in ../shared/data")
def test_adults_relationship_is_named_and_nothing_else(tmp_path: Path) -> None:
    printed = prepare("adult", tmp_path / "log", [f"raw={REAL / 'adult'}", "features.relationship={}"])
    assert leaks(printed) == [("relationship", "never_married")]


@pytest.mark.long
@pytest.mark.skipif(not (REAL / "adult").exists(), reason="Adult is not in ../shared/data")
def test_nothing_of_adult_is_named_without_relationship(tmp_path: Path) -> None:
    assert leaks(prepare("adult", tmp_path / "log", [f"raw={REAL / 'adult'}"])) == []


@pytest.mark.skipif(not (REAL / "shop").exists(), reason="the shop is not in ../shared/data")
def test_nothing_of_the_shop_is_named(tmp_path: Path) -> None:
    assert leaks(prepare("shop", tmp_path / "log", [f"raw={REAL / 'shop'}"])) == []


@pytest.mark.long
@pytest.mark.skipif(not (REAL / "KuaiRand-Pure").exists(), reason="KuaiRand-Pure is not in ../shared/data")
def test_the_play_time_of_the_real_kuairand_is_named_and_nothing_else(tmp_path: Path) -> None:
    play = "features.play={value: play_time_ms, buckets: {quantiles: 20}}"
    settings = [f"raw={REAL / 'KuaiRand-Pure/data'}", "sources.log.columns.play_time_ms=int", play]
    assert leaks(prepare("kuairand_pure", tmp_path / "log", settings)) == [("play", "long_view")]
