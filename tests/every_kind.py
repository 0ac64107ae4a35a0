"""Raw files and a spec with every kind of feature, for tests that compare what makes a log of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS = 400
SPEC = """
format: 1
variables: {raw: null}
sources:
  log:
    files: ${raw}/log_{part}.csv
    partitions: {part: text}
    delimiter: ";"
    trim: true
    nulls: ["", "?"]
    columns: {row: int, user: int, item: text, time: int, price: float, clicked: int, bought: int, moment: timestamp,
              day: date, flag: bool}
  items:
    {files: "${raw}/items.jsonl", type: json,
     columns: {item: text, category: int, brands: list<text>, sizes: list<int>, scores: list<float>}}
  users: {files: "${raw}/users", type: parquet, partitions: {country: text}}
joins:
  - {source: items, on: item, repeats: first}
  - {source: users, on: user, repeats: last}
columns:
  hour: hour(moment, 'Asia/Shanghai')
  where_and_when: cross(city, hour)
where: price is null or price >= 0
deduplicate: {by: [user, item, time]}
row_key: [row]
split: {time: {by: time, train_until: 1249, valid_until: 1349, gap: 20}}
order: time
labels:
  click: clicked
  buy: {value: bought, where: clicked = 1, weight: "coalesce(price, 1)"}
group: coalesce(user, -1)
weight: case when flag then 2 else 1 end
keep: [row, note, country, part]
features:
  user: {vocabulary: {min_count: 1}}
  item: {vocabulary: {most_frequent: 12}, missing: own}
  follows: {vocabulary: {of: user}, pooling: mean}
  hour: {buckets: {edges: [0, 6, 12]}, vocabulary: {min_count: 1}}
  city: {missing: none}
  tags:
    {value: "ints(split(tags, '|'))", weights: "floats(split(weights, '|'))", missing: own,
     vocabulary: {min_count: 1}}
  brands: {missing: none, vocabulary: {min_count: 1}}
  flag: {vocabulary: {min_count: 1}}
  price_bucket: {value: price, buckets: {quantiles: 5}}
  age_bucket: {value: age, buckets: {edges: [0, 18, 30.5, 50]}, missing: own}
  where_and_when: {hash: {buckets: 50, salt: x}}
  hashed_item: {value: item, hash: {buckets: 40, hashes: 2}, weights: "coalesce(price, 0.5)"}
  hashed_user: {value: user, hash: {buckets: 2000, hashes: 3}, missing: none, weights: "1"}
  hashed_tags:
    {value: "ints(split(tags, '|'))", weights: "floats(split(weights, '|'))", missing: own,
     hash: {buckets: 30, hashes: 2, salt: "ü'"}}
  hashed_day: {value: day, hash: {buckets: 9}}
  slot: {value: row % 7, identity: 7, weights: "coalesce(flag, false)"}
  sizes: {identity: 10}
dense:
  price: {log: true, clip: [0.02, 0.98], standardize: true, missing: {flag: true}}
  age: {quantiles: 10, missing: {fill: 0.25}}
  score: {value: "element(scores, 1) * 3", standardize: true, missing: {fill: -1, flag: true}}
  minutes: {value: minute(moment)}
  is_flag: {value: flag, clip: [0, 1]}
  nothing: {value: "null"}
row_group_size: 100
"""
RANDOM = {"split": {"random": {"by": ["user"], "seed": 3, "valid": 0.2, "test": 0.2}}, "order": "shuffle"}
BY_COLUMN = {"split": {"column": {"by": "part", "train": ["b"], "valid": ["a"]}}, "order": "source"}
_ITEMS = ["shoe", "Shoe", "tea; green", 'a "b"', "line\nend", "é", "日本", "z", "zz", "10", "9", " x", "e\u0301", "-"]


def write_raw(folder: Path, seed: int = 0) -> Path:
    """Writes the files that the spec names, and returns their folder."""
    rng = np.random.default_rng(seed)
    (folder / "users").mkdir(parents=True)
    for part, rows in (("a", range(ROWS // 4)), ("b", range(ROWS // 4, ROWS))):
        lines = ["row;user;item;time;price;clicked;bought;moment;day;flag;tags;weights;note"]
        lines += [";".join(_cells(row, rng)) for row in rows]
        # Some rows are there twice.
        lines += lines[5:15]
        (folder / f"log_{part}.csv").write_text("\r\n".join(lines) + "\r\n", newline="")
    items = [_item(name, i) for i, name in enumerate([*_ITEMS[:-2], *_ITEMS[:3]])]
    (folder / "items.jsonl").write_text(
        "".join(json.dumps(item, ensure_ascii=i % 2 > 0) + "\n" for i, item in enumerate(items))
    )
    for country, users in (("de", [1, 2, 3, 4, 5, 3, 2**53 + 1]), ("jp", [6, 7, 8, 9, 10, 8])):
        below = folder / "users" / f"country={country}"
        below.mkdir()
        table = pa.table(
            {
                "user": pa.array(users, pa.int64()),
                "city": [["Bonn", "Kiel", None, "bonn"][i % 4] for i in range(len(users))],
                "age": pa.array([[17.5, 18.0, None, 64.25, 30.5][i % 5] for i in range(len(users))]),
                "follows": pa.array(
                    [[[], [1, 2], None, [7, 77, 7]][i % 4] for i in range(len(users))], pa.list_(pa.int32())
                ),
            }
        )
        pq.write_table(table, below / "part-0.parquet")
    return folder


def _cells(row: int, rng: np.random.Generator) -> list[str]:
    user = int(rng.integers(1, 13))
    item = _ITEMS[int(len(_ITEMS) * rng.random() ** 2)]
    item = '"' + item.replace('"', '""') + '"' if set(item) & set(';"\n') else item
    tags = rng.integers(0, 8, rng.integers(0, 4)).tolist()
    price = ["", "?", "0", "-1", "1e2"][row % 5] if row % 4 == 0 else f" {rng.integers(0, 4000) / 16} "
    return [
        str(row),
        str(2**53 + 1) if row % 31 == 0 else "" if row % 37 == 0 else f"{user}.0" if row % 3 == 0 else str(user),
        item if row % 29 else "",
        # Neighbours have the same time, which the order of the source decides.
        str(1000 + row // 3 * 3 if row % 2 else 1000 + int(rng.integers(0, ROWS))),
        price,
        str(clicked := int(rng.random() < 0.4)),
        str(int(clicked and rng.random() < 0.5)),
        f"2022-05-{row % 9 + 1:02} {row % 24:02}:{row % 60:02}:07.25" if row % 11 else "",
        f"2022-05-{row % 9 + 1:02}" if row % 13 else "",
        ["true", "false", ""][row % 3],
        "|".join(map(str, tags)) if row % 17 else "",
        "|".join(str(each / 8) for each in tags) if row % 17 else "",
        ["plain", "?", "ß 'quoted'", '"two\nlines"'][row % 4],
    ]


def _item(name: str, i: int) -> dict[str, Any]:
    item: dict[str, Any] = {"item": name, "category": [i % 9, None][i % 7 == 6]}
    item |= {"brands": [[], ["x"], ["y", "x", ""], None][i % 4], "sizes": [[1, 2], [], [i % 10]][i % 3]}
    return item | ({} if i % 5 == 4 else {"scores": [[0.5, 2], [i / 7], []][i % 3]})
