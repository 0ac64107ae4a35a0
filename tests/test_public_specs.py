"""The installed specs give the values that stand in files of the true raw format, read here line by line."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stem_torchrec.config.json_text import parse_json
from stem_torchrec.data.schema import load_schema
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log

from raw_logs import ali_ccp, aliexpress, shop, tenrec, tiktok
from small_runs import run_script

pytestmark = pytest.mark.long
ROWS = 3000


def made(spec: str, raw: Path, *settings: str) -> Path:
    """The log of an installed spec, beside its raw files, in the order of the files."""
    log = raw.with_name("log")
    options = PrepareOptions(
        spec=spec, out=str(log), set=(f"raw={raw}", "order=source", *settings), report=False, memory=0.5
    )
    prepare_log(options)
    return log


def rows_of(log: Path, split: str, *features: str) -> list[dict[str, Any]]:
    """The rows of a split, with the raw values of features in the place of their ids; 0 for an unseen one."""
    columns = pq.read_table(log / split).to_pydict()
    for name in features:
        words = pq.read_table(log / "vocabulary" / f"{name}.parquet").to_pydict()
        value = {0: 0, **dict(zip(words["id"], words["value"], strict=True))}
        columns[name] = [
            [value[each] for each in ids] if isinstance(ids, list) else value.get(ids) for ids in columns[name]
        ]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def known(value: Any, written: Any) -> Any:
    """What the log has for a raw value, of which one that train has rarely is 0."""
    if isinstance(written, list):
        return [0 if each == 0 else raw for raw, each in zip(value, written, strict=True)]
    return 0 if written == 0 else value


def fields(features: str) -> Mapping[str, list[int]]:
    """The ids by field of a text of Ali-CCP."""
    ids: dict[str, list[int]] = {}
    for feature in features.split("\x01"):
        field, number = re.fullmatch(r"(\w+)\x02(\d+)\x03[\d.]+", feature).groups()  # type: ignore[union-attr]
        ids.setdefault(field, []).append(int(number))
    return ids


def read(path: Path, separator: str = ",") -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter=separator, quoting=csv.QUOTE_NONE))


def test_ali_ccp_has_the_ids_of_each_field_and_those_of_the_common_features(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    ali_ccp.write_ali_ccp(raw, ROWS)
    log = made("ali_ccp", raw)
    names = [feature.name for feature in load_schema(str(log)).sparse_features]
    expected: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for part in ("train", "test"):
        common = {index: fields(text) for index, _, text in read(raw / f"common_features_{part}.csv")}
        for number, click, conversion, index, _, text in read(raw / f"sample_skeleton_{part}.csv"):
            if (click, conversion) != ("0", "1"):
                split = "test" if part == "test" else "valid" if int(number) % 10 == 0 else "train"
                ids = {**common[index], **fields(text)}
                expected[split].append({"click": int(click), "conversion": int(conversion), "ids": ids})
    unseen = 0
    for split, rows in expected.items():
        written = rows_of(log, split, *names)
        assert [(row["click"], row["conversion"]) for row in written] == [(r["click"], r["conversion"]) for r in rows]
        for row, raw_row in zip(written, rows, strict=True):
            for name in names:
                ids, written_ids = raw_row["ids"].get(name.removeprefix("f"), []), row[name]
                if name == "f210" or name.endswith("_14"):
                    assert known(ids, written_ids or []) == (written_ids or []), name
                else:
                    assert written_ids == (known(ids[0], written_ids) if ids else 0), name
                unseen += written_ids == 0
    assert unseen < 0.5 * sum(map(len, expected.values())) * len(names)


def test_tenrec_keeps_the_order_of_its_file_and_knows_unknown_categories(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    header, *lines = read(tenrec.write_tenrec(raw, ROWS, app="QB"))
    log = made("tenrec_qb_video", raw, "split={column: {by: age, train: [0, 1, 2, 3, 4, 5], valid: [6, 7]}}")
    ages = [int(line[header.index("age")]) for line in lines]
    for split, least, greatest in (("train", 0, 5), ("valid", 6, 7)):
        some = [line for line, age in zip(lines, ages, strict=True) if least <= age <= greatest]
        raw_rows = [dict(zip(header, line, strict=True)) for line in some]
        written = rows_of(log, split, "user_id", "item_id")
        for row, raw_row in zip(written, raw_rows, strict=True):
            assert [row[name] for name in ("click", "follow", "like", "share")] == [
                int(raw_row[name]) for name in ("click", "follow", "like", "share")
            ]
            assert row["group_user_id"] == int(raw_row["user_id"])
            assert row["item_id"] in (0, int(raw_row["item_id"]))
            assert (row["video_category"] == 1) == (raw_row["video_category"] == r"\N")


def test_tiktok_has_a_vocabulary_of_what_occurs_ten_times(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    tiktok.write_tiktok(raw / tiktok.FILE, 6000, 0)
    log = made("tiktok", raw)
    rows = [dict(zip(tiktok.COLUMNS, map(int, line), strict=True)) for line in read(raw / tiktok.FILE, "\t")]
    counts = [pq.read_table(log / split).num_rows / len(rows) for split in ("train", "valid", "test")]
    # Three standard deviations of 6000 draws.
    assert counts == pytest.approx([0.81, 0.09, 0.1], abs=0.016)
    written = [pq.read_table(log / split).to_pydict() for split in ("train", "valid", "test")]
    for name in ("finish", "like"):
        assert sum(sum(part[name]) for part in written) == sum(row[name] for row in rows)
    assert sorted(uid for part in written for uid in part["group_uid"]) == sorted(row["uid"] for row in rows)
    words = pq.read_table(log / "vocabulary" / "author_id.parquet").to_pydict()
    of_author = {author: part.count(author) for part in [[row["author_id"] for row in rows]] for author in set(part)}
    assert all(10 <= count <= of_author[value] for value, count in zip(words["value"], words["count"], strict=True))
    assert {value for value, count in of_author.items() if count >= 30} <= set(words["value"])


def test_each_country_of_aliexpress_has_numbers_as_they_are(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    aliexpress.write_aliexpress(raw, ROWS, 0)
    (raw / "AliExpress_NL").rename(raw / "AliExpress_ES")
    log = made("aliexpress", raw, "country=ES")
    header, *lines = read(raw / "AliExpress_ES" / "test.csv")
    written = pq.read_table(log / "test").to_pydict()
    for name in ("numerical_1", "numerical_63", "conversion"):
        # Numbers are float32.
        assert written[name] == pytest.approx([float(line[header.index(name)]) for line in lines], rel=1e-6)
    assert len(load_schema(str(log)).dense_features) == 63
    assert len(load_schema(str(log)).sparse_features) == 16


def test_the_pairs_of_a_shop_go_from_raw_file_to_metrics_in_two_commands(tmp_path: Path) -> None:
    shop.write_shop(tmp_path, 4000)
    prepare_line = ("shop", "--set", f"raw={tmp_path}", "--out", tmp_path / "log")
    run_script("stem_torchrec/prepare.py", *map(str, prepare_line))
    small = ("--model.expert-hidden", "8", "--train.epochs", "1")
    train_line = ("--data.path", tmp_path / "log", "--output-dir", tmp_path / "run", *small)
    run_script("stem_torchrec/train.py", *map(str, train_line))
    metrics = parse_json((tmp_path / "run" / "metrics.json").read_bytes())["valid"]
    assert set(metrics) == {"view", "save", "buy"}
    assert all(0.4 < values["auc"] < 1 for values in metrics.values())
