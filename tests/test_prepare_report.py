"""report.md and report.html of a prepared log: each number against pandas, and whole sentences."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import jensenshannon

from stem_torchrec.data.schema import LabelCounts, Schema, SparseFeature, Split, load_schema
from stem_torchrec.expressions.hashes import hash_id
from stem_torchrec.expressions.value_types import ValueType
from stem_torchrec.preparation.fitting.fit import Fitted
from stem_torchrec.preparation.report.counts import number_of_digits
from stem_torchrec.preparation.report.facts import (
    Collisions,
    FeatureFacts,
    GroupFacts,
    LogFacts,
    NumberFacts,
    divergence,
)
from stem_torchrec.preparation.report.leak_check import LoneAuc
from stem_torchrec.preparation.report.warning_sentences import _of_feature, collision_text
from stem_torchrec.preparation.report.warning_sentences import warnings_of as sentences_of
from stem_torchrec.preparation.specs.spec import Source, Spec
from stem_torchrec.preparation.specs.spec_expressions import SpecExpressions, read_expressions
from stem_torchrec.preparation.specs.splits import Split as SpecSplit
from stem_torchrec.preparation.specs.splits import TimeSplit

from report_tables import by, number, prepare, tables, warnings_of

ODD = "a<b>|c_d*e"
SPEC = f"""
format: 1
description: Drawn <rows> of | a shop.
sources: {{log: {{files: FILE, columns: {{row: int, user: int, item: text, tags: text, price: float, day: int,
  click: int, buy: int, kind: int}}}}}}
where: kind < 9
deduplicate: {{by: [row]}}
split: {{time: {{by: day, train_until: 6, valid_until: 8, gap: 1}}}}
group: user
labels: {{click: click, buy: {{value: buy, where: click = 1}}}}
features:
  user: {{vocabulary: {{min_count: 3}}}}
  item: {{missing: own}}
  tags: {{value: "split(tags, ' ')", missing: none}}
  ad: {{value: item, hash: {{buckets: 40}}}}
  kind: {{identity: 9}}
  "{ODD}": {{value: kind, missing: unseen}}
dense:
  price: {{log: true, standardize: true}}
"""
NO_EARLIER_LOG = Fitted({}, {})
SPLITS = ("train", "valid", "test")


def draw() -> pd.DataFrame:
    """Rows of 10 days, with some twice, blanks, and users and items that come later."""
    rng, rows = np.random.default_rng(0), 6000
    day = np.sort(rng.integers(0, 11, rows))
    user, item = rng.zipf(1.3, rows) % 900 + day // 3, rng.zipf(1.4, rows) % 300
    liking = (user % 7 + item % 5) / 10
    click = (rng.random(rows) < 0.2 + liking / 2).astype(int)
    price = np.where(rng.random(rows) < 0.1, np.nan, np.round(rng.lognormal(3, 2, rows) - 5, 2))
    tags = [" ".join(f"t{each}" for each in rng.zipf(1.5, size=n) % 40) for n in rng.integers(0, 4, rows)]
    frame = pd.DataFrame(
        {
            "row": np.arange(rows), "user": user, "item": [f"i{each}" if each else "" for each in item],
            "tags": tags, "price": price, "day": day, "click": click,
            "buy": click * (rng.random(rows) < 0.3), "kind": rng.integers(0, 10, rows),
        }
    )  # fmt: skip
    return pd.concat([frame, frame[frame["row"] % 50 == 0]])


def split_of(day: pd.Series) -> pd.Series:
    """None for day 7, the gap."""
    return day.map(lambda each: "train" if each <= 6 else None if each == 7 else "valid" if each == 8 else "test")


@pytest.fixture(scope="module")
def drawn() -> pd.DataFrame:
    """The rows that the spec keeps, in their splits."""
    rows = draw().drop_duplicates("row")
    rows = rows[rows["kind"] < 9]
    return rows.assign(split=split_of(rows["day"])).dropna(subset=["split"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log, with what was printed in printed.txt beside it."""
    root = tmp_path_factory.mktemp("report")
    draw().to_csv(root / "rows.csv", index=False)
    (root / "spec.yaml").write_text(SPEC.replace("FILE", str(root / "rows.csv")))
    (root / "printed.txt").write_text("\n".join(prepare(root / "spec.yaml", root / "log")))
    return root / "log"


@pytest.fixture(scope="module")
def report(folder: Path) -> str:
    return (folder / "report.md").read_text()


def test_the_rows_of_each_step_are_told(report: str, folder: Path, drawn: pd.DataFrame) -> None:
    rows = draw()
    kept = rows[rows["kind"] < 9]
    steps = {"source": len(rows), "where": len(kept), "deduplicate": kept["row"].nunique(), "split": len(drawn)}
    by_step, by_split = tables(report)["Rows"]
    assert {row["step"]: number(row["rows"]) for row in by_step} == steps
    assert number(by_step[1]["removed"]) == len(rows) - len(kept)
    assert {row["split"]: number(row["rows"]) for row in by_split} == dict(drawn["split"].value_counts())
    printed = folder.with_name("printed.txt").read_text().splitlines()
    assert "  " + ", ".join(f"{step} {left:,}" for step, left in steps.items()) in printed
    stages = [line.split()[0] for line in printed if re.match(r"\w+ .* s( |$)", line)]
    assert stages == ["rows", "fit", "write", "report"]


def test_positives_and_missing_labels_are_counted(report: str, drawn: pd.DataFrame) -> None:
    labels = drawn.assign(buy=drawn["buy"].where(drawn["click"] == 1))
    rows = by(tables(report)["Labels"][0], "label", "split")
    for label in ("click", "buy"):
        for split in SPLITS:
            values, row = labels.loc[labels["split"] == split, label], rows[label, split]
            assert number(row["positives"]) == values.sum()
            assert number(row["missing"]) == values.isna().sum()
            assert number(row["share"]) == pytest.approx(values.mean(), abs=5e-5)
    train = labels[labels["split"] == "train"]
    [pair] = tables(report)["Labels"][1]
    assert pair["pair"] == "click and buy"
    assert number(pair["both present"]) == train["buy"].notna().sum()
    assert number(pair["both positive"]) == ((train["click"] == 1) & (train["buy"] == 1)).sum()
    lift = train["buy"].sum() / (train["click"].mean() * train["buy"].mean() * train["buy"].notna().sum())
    assert number(pair["lift"]) == pytest.approx(lift, abs=0.005)
    valid = drawn.loc[drawn["split"] == "valid", "user"].value_counts()
    sentence = (
        f"group_user has {len(valid)} groups in the {valid.sum()} rows of valid; {(valid == 1).sum()} of them have"
    )
    assert sentence in report


def test_ids_coverage_unseen_ids_and_drift_are_those_of_pandas(report: str, folder: Path, drawn: pd.DataFrame) -> None:
    rows = by(tables(report)["Features"][0], "feature")
    sizes = {feature.name: feature.num_embeddings for feature in load_schema(str(folder)).sparse_features}
    values = {
        "user": drawn["user"],
        "item": drawn["item"].replace("", None),
        "tags": drawn["tags"].str.split(" ").map(lambda each: [tag for tag in each if tag]),
        "ad": drawn["item"].replace("", None),
    }
    for name, column in values.items():
        row = rows[(name,)]
        assert number(row["ids"]) == sizes[name]
        filled = column.map(bool) if name == "tags" else column.notna()
        written = pd.concat([pd.read_parquet(folder / split, columns=[name]).assign(split=split) for split in SPLITS])
        written = written.explode(name).dropna()
        train = set(written.loc[written["split"] == "train", name])
        assert number(row["in train"]) == len(train)
        counts = written.groupby("split")[name].value_counts().unstack(0).fillna(0)
        counts = counts.sort_values("train", ascending=False, kind="stable")[list(SPLITS)].to_numpy()
        top = np.vstack([counts[:100], counts[100:].sum(axis=0)])
        for i, split in enumerate(SPLITS):
            assert number(row[f"coverage {split}"]) == pytest.approx(filled[drawn["split"] == split].mean(), abs=5e-4)
            ids = written.loc[written["split"] == split, name].astype(int)
            unseen = ~ids.isin(train) if name == "ad" else ids == 0
            assert number(row[f"unseen {split}"]) == pytest.approx(unseen.mean(), abs=5e-4)
            if split != "train":
                drift = jensenshannon(top[:, 0], top[:, i], base=2) ** 2
                assert number(row[f"drift {split}"]) == pytest.approx(drift, abs=2e-3)


def test_a_missing_value_with_the_id_of_unseen_ones_is_not_unseen(report: str) -> None:
    # `kind` is in every row, and each of its nine values is in train.
    row = by(tables(report)["Features"][0], "feature")[("kind",)]
    assert {row[f"unseen {split}"] for split in SPLITS} == {"0.0%"}


def test_numbers_have_quantiles_and_missing_shares(report: str, drawn: pd.DataFrame) -> None:
    for row in tables(report)["Dense features"][0]:
        price = drawn.loc[drawn["split"] == row["split"], "price"]
        assert number(row["missing"]) == pytest.approx(price.isna().mean(), abs=5e-4)
        for share in ("0%", "1%", "25%", "50%", "75%", "99%", "100%"):
            expected = price.quantile(number(share), interpolation="lower")
            assert number(row[share]) == pytest.approx(expected, rel=5e-3)  # three digits


def test_what_a_hash_costs_is_measured(report: str, folder: Path, drawn: pd.DataFrame) -> None:
    items = drawn.loc[(drawn["split"] == "train") & (drawn["item"] != ""), "item"].value_counts()
    table = pd.DataFrame({"times": items, "id": [hash_id(item, buckets=40, salt="") for item in items.index]})
    by_id = table.groupby("id")["times"]
    shared = by_id.transform("count") > 1
    facts = Collisions(
        40, len(items), items.sum(), shared.sum(), table.loc[shared, "times"].sum(),
        (by_id.sum() - by_id.max()).sum(),
    )  # fmt: skip
    assert f"ad: {collision_text(facts)}" in report
    printed = folder.with_name("printed.txt").read_text().splitlines()
    assert f"feature 'ad': {collision_text(facts)}" in warnings_of(printed)


@pytest.mark.parametrize("is_known", [False, True])
def test_a_feature_of_one_value_is_warned_of_unless_an_earlier_log_has_it(is_known: bool) -> None:
    facts = FeatureFacts(9, 1, coverage={"train": 1.0}, unseen={"valid": 0.0}, drift={"valid": 0.0}, aucs={})
    assert len([*_of_feature("city", facts, is_known=is_known)]) == (not is_known)


def test_the_cost_of_a_hash_is_a_sentence() -> None:
    assert collision_text(Collisions(1000, 200, 5000, 40, 1500, 600)) == (
        "200 values of train have the 1,000 ids of the hash. 20.00% of the values, with 30.00% of their occurrences, "
        "share an id with another value, and the model cannot tell them apart; 12.00% of the occurrences have an "
        "embedding that a more frequent value trains. With 2,000 ids about 9.47% of the values would share one; a "
        "vocabulary of all has 201 ids and no collision."
    )


def test_the_page_needs_no_other_file_and_says_the_same(report: str, folder: Path) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r"<(script|link|iframe|img)\b|https?:|url\(|@import", page)
    assert "prefers-color-scheme: dark" in page
    assert "overflow-x: auto" in page
    # Names are escaped, and a name with marks of Markdown stays in its cell.
    assert f'<td style="text-align: left;">{"a&lt;b&gt;|c_d*e"}</td>' in page
    assert "Drawn &lt;rows&gt; of | a shop." in page
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    plain = sum(len(row) for of_heading in tables(report).values() for rows in of_heading for row in rows)
    assert len(cells) == plain
    for heading in tables(report):
        assert re.search(f"<h2 id=.*?>{heading}</h2>", page)


def test_the_command_prints_the_warnings_of_the_report(report: str, folder: Path) -> None:
    printed = warnings_of(folder.with_name("printed.txt").read_text().splitlines())
    assert printed
    assert report.count("\n- ") == len(printed)


@pytest.mark.parametrize(
    ("number_in", "rounded"), [(17.0, 17.0), (0.12345, 0.123), (-0.12345, -0.123), (999.6, 1000.0), (0.0, 0.0)]
)
def test_three_digits_stay_of_a_number(number_in: float, rounded: float) -> None:
    exponent = int(np.floor(np.log10(abs(number_in)))) if number_in else 0
    digits = int(np.floor(abs(number_in) * 10.0 ** (2 - exponent) + 0.5))
    key = (1000 * (exponent + 500) + digits) * int(np.sign(number_in))
    assert number_of_digits(key) == pytest.approx(rounded, rel=1e-12)


def test_divergence_is_that_of_scipy() -> None:
    counts, others = [5, 0, 3, 2], [1, 4, 0, 5]
    assert divergence(counts, others) == pytest.approx(jensenshannon(counts, others, base=2) ** 2, rel=1e-9)
    assert divergence([1, 2], [2, 4]) == 0
    assert divergence([1, 0], [0, 2]) == 1
    assert np.isnan(divergence([1], [0]))


def expressions_of(columns: dict[str, str], **features: str) -> SpecExpressions:
    """Of a spec with the label `buy` from the column bought, whose features are these expressions."""
    spec = Spec(
        sources={"log": Source("rows.csv", header=False)},
        split=SpecSplit(time=TimeSplit("day", 1, 2)),
        labels={"buy": "bought"},
        features={name: None for name in columns},
        columns=features,
        group="user",
    )
    types = dict.fromkeys(["bought", "day", "user", *columns.values()], ValueType.INT)
    return read_expressions(spec, types)


def schema_of(train: tuple[int, int], valid: tuple[int, int]) -> Schema:
    splits = {
        name: Split(rows, {"buy": LabelCounts(positives, 0)})
        for name, (rows, positives) in (("train", train), ("valid", valid))
    }
    return Schema((SparseFeature("user", 10),), ("buy",), splits, group="user")


def feature_facts(ids: int = 50, unseen: float = 0.0, drift: float = 0.0) -> FeatureFacts:
    shares = {"train": 1.0, "valid": 1.0}
    unseen_by_split = {"train": 0.0, "valid": unseen}
    return FeatureFacts(ids + 1, ids, shares, unseen_by_split, {"valid": drift}, {"buy": LoneAuc(0.6, 500, 500)})


def log_facts(group: GroupFacts | None = None, **features: FeatureFacts) -> LogFacts:
    return LogFacts({"source": 1, "split": 1}, features, {}, {}, group)


def test_nothing_is_said_of_an_honest_log() -> None:
    columns = {"user": "user", "follow_range": "follow_range", "likelihood": "likelihood", "duration": "duration"}
    facts = log_facts(**{name: feature_facts() for name in columns}, group=GroupFacts("user", 100, 50, 400))
    assert sentences_of(facts, schema_of((1000, 300), (500, 100)), expressions_of(columns), NO_EARLIER_LOG) == []


def test_features_that_are_constant_unseen_or_drift_and_groups_of_one_row_are_named() -> None:
    columns = {"user": "user", "country": "country", "age": "age"}
    facts = log_facts(
        user=feature_facts(unseen=0.75),
        country=feature_facts(ids=1),
        age=feature_facts(drift=0.389),
        group=GroupFacts("user", 100, 80, 160),
    )
    assert sentences_of(facts, schema_of((1000, 300), (500, 100)), expressions_of(columns), NO_EARLIER_LOG) == [
        "75.0% of the ids of feature 'user' in valid do not occur often enough in train, so the model knows nothing of "
        "them; a coarser feature, a smaller min_count or another split may serve better.",
        "feature 'country' has one id in all rows of train, so nothing can be learned from it; leave it out.",
        "the ids of feature 'age' in valid differ from those of train (divergence 0.389 of at most 1), so what the "
        "model learns of it may not hold; look at what its values mean over time.",
        "80.0% of the 100 groups of 'user' in valid have a single row (50.0% of the rows), which gAUC leaves out; it "
        "tells of the others only.",
    ]


def test_a_constant_number_is_named() -> None:
    constant = NumberFacts({"train": 0.0, "valid": 0.0}, {"train": [3.0] * 7, "valid": [3.0] * 7}, {"valid": 0.0}, {})
    facts = LogFacts({}, {"user": feature_facts()}, {"price": constant}, {}, None)
    schema, expressions = schema_of((1000, 300), (500, 100)), expressions_of({"user": "user"})
    assert sentences_of(facts, schema, expressions, NO_EARLIER_LOG) == [
        "dense feature 'price' is 3 in all rows of train; leave it out."
    ]


def test_a_rare_label_is_named() -> None:
    expressions = expressions_of({"user": "user"})
    facts = log_facts(user=feature_facts())
    assert sentences_of(facts, schema_of((100_000, 40), (10_000, 5)), expressions, NO_EARLIER_LOG) == [
        "label 'buy' is positive in 40 of 100,000 rows of train (0.040%); with so few, its task learns slowly and its "
        "metrics are noisy."
    ]
    assert sentences_of(facts, schema_of((1000, 30), (500, 12)), expressions, NO_EARLIER_LOG) == [
        "label 'buy' is positive in 12 of the 500 rows of valid; with so few, its metrics are noisy."
    ]


def test_columns_that_come_after_the_exposure_are_named() -> None:
    columns = {"user": "user", "is_like": "is_like", "watched": "watched", "of_label": "of_label"}
    derived = {"watched": "play_time_ms + 1", "of_label": "bought + 1"}
    expressions = expressions_of(columns | {"play_time_ms": "play_time_ms"}, **derived)
    facts = log_facts(**{name: feature_facts() for name in columns})
    assert sentences_of(facts, schema_of((1000, 300), (500, 100)), expressions, NO_EARLIER_LOG)[:3] == [
        "feature 'is_like' has 'like' in its name: if it is known only after the exposure, leave it out.",
        "feature 'watched' reads 'play_time_ms', which has 'play_time' in its name: if it is known only after the "
        "exposure, leave it out.",
        "feature 'of_label' reads 'bought', of which the label 'buy' is made; leave it out unless the label is of "
        "another exposure.",
    ]
