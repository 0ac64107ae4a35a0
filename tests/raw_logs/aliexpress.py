"""Search in AliExpress (tianchi.aliyun.com/dataset/74690), as MTReclib joins it: train.csv and test.csv of a country.

A header, commas; 16 categorical columns with small numbers, 63 numerical ones from 0 to 1 of which three are always 0.
`search_id` is the page of results; train.csv and test.csv number their pages each from the start, and the rows of a
page stand together, with the same columns of the user and the query.
"""

from pathlib import Path

import numpy as np

from raw_logs.draws import effect, generator, label, skewed
from raw_logs.lines import write_lines

CARDINALITIES = (5, 20, 35, 10, 10, 35, 185, 40, 40, 10, 10, 10, 10, 10, 10, 10)
PAGE_CATEGORIES, PAGE_NUMBERS = 9, 23
"""The first columns, which belong to the user and the query."""
NUMBERS = 63
ZEROS = (58, 59, 60)
COLUMNS = (
    "search_id",
    *(f"categorical_{i + 1}" for i in range(len(CARDINALITIES))),
    *(f"numerical_{i + 1}" for i in range(NUMBERS)),
    *("click", "conversion"),
)


def write_aliexpress(folder: Path, rows: int, seed: int = 0, country: str = "NL") -> Path:
    """Writes `AliExpress_NL/train.csv` with 70 % of the rows and test.csv with the others; returns their folder."""
    out = folder / f"AliExpress_{country}"
    out.mkdir(parents=True, exist_ok=True)
    weights = generator(seed, 0).normal(0, 0.6, NUMBERS)
    for i, (part, share) in enumerate((("train", 0.7), ("test", 0.3))):
        _write_part(out / f"{part}.csv", round(rows * share), weights, generator(seed, 1, i))
    return out


def _write_part(path: Path, rows: int, weights: np.ndarray, rng: np.random.Generator) -> None:
    search = np.sort(rng.integers(0, max(rows // 20, 1), rows)) + 3
    page = np.unique(search, return_inverse=True)[1]
    pages = page[-1] + 1
    numbers = np.clip(rng.beta(0.7, 2.5, (rows, NUMBERS)), 0, 1).round(6)
    numbers[rng.random((rows, NUMBERS)) < 0.15] = 0
    numbers[:, :PAGE_NUMBERS] = numbers[:pages, :PAGE_NUMBERS][page]
    columns = {"search_id": search}
    for i, values in enumerate(CARDINALITIES):
        drawn = skewed(rng, pages if i < PAGE_CATEGORIES else rows, values, head=2)
        columns[f"categorical_{i + 1}"] = drawn[page] if i < PAGE_CATEGORIES else drawn
    columns |= {f"numerical_{i + 1}": numbers[:, i] for i in range(NUMBERS)}
    columns |= {f"numerical_{i + 1}": np.zeros(rows, np.int64) for i in ZEROS}
    liking = (numbers - numbers.mean(axis=0)) @ weights, effect(rng, pages, page, 0.4)
    columns["click"] = label(rng, 0.021, *liking)
    columns["conversion"] = label(rng, 0.03, *liking, within=columns["click"] > 0)
    write_lines(path, columns)
