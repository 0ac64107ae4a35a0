"""Adult (archive.ics.uci.edu/dataset/2): `adult.data`, people of the census of 1994.

No header; a comma and a blank between cells, `?` for unknown, a blank last line. Some rows are there twice.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from raw_logs.draws import effect, generator, label, skewed, some
from raw_logs.lines import pick, write_lines

FILE = "adult.data"
CATEGORIES = {
    "workclass": "Private Self-emp-not-inc Local-gov ? State-gov Self-emp-inc Federal-gov Without-pay Never-worked",
    "education": "HS-grad Some-college Bachelors Masters Assoc-voc 11th Assoc-acdm 10th 7th-8th Prof-school 9th 12th "
    "Doctorate 5th-6th 1st-4th Preschool",
    "marital-status": "Married-civ-spouse Never-married Divorced Separated Widowed Married-spouse-absent "
    "Married-AF-spouse",
    "occupation": "Prof-specialty Craft-repair Exec-managerial Adm-clerical Sales Other-service Machine-op-inspct "
    "Transport-moving Handlers-cleaners Farming-fishing Tech-support Protective-serv Priv-house-serv Armed-Forces",
    "relationship": "Husband Not-in-family Own-child Unmarried Wife Other-relative",
    "race": "White Black Asian-Pac-Islander Amer-Indian-Eskimo Other",
    "sex": "Male Female",
    "native-country": "United-States Mexico ? Philippines Germany Canada Puerto-Rico El-Salvador India Cuba",
}
COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)
_EDUCATION_NUM = np.array([9, 10, 13, 14, 11, 7, 12, 6, 4, 15, 5, 8, 16, 3, 2, 1])
_MARRIED, _SINGLE, _OTHERS = 0, 1, 2


def write_adult(folder: Path, rows: int, seed: int = 0) -> Path:
    """Writes `adult.data` with `rows` rows and a blank line, and returns its path."""
    rng = generator(seed)
    drawn = {
        name: skewed(rng, rows, len(values.split()), head=2 if name != "native-country" else 1)
        for name, values in CATEGORIES.items()
    }
    age = np.clip(rng.normal(38, 13, rows), 17, 90).astype(np.int64)
    education, hours = _EDUCATION_NUM[drawn["education"]], np.clip(rng.normal(40, 12, rows), 1, 99).astype(np.int64)
    young, gain = (38 - age) / 8, np.where(some(rng, rows, 0.08), skewed(rng, rows, 100, head=50) * 1000 + 114, 0)
    single = label(rng, 0.33, young)
    drawn["marital-status"] = np.where(single, _SINGLE, np.where(some(rng, rows, 0.7), _MARRIED, _OTHERS))
    drawn["relationship"] = np.where(drawn["marital-status"] == _MARRIED, 0, 1 + drawn["relationship"] % 3)
    by_job = effect(rng, len(CATEGORIES["occupation"].split()), drawn["occupation"])
    rich = label(rng, 0.24, (education - 10) / 3, -young / 3, (gain > 5000) * 3, by_job, (hours - 40) / 20)
    columns = {name: pick(CATEGORIES[name].split(), drawn[name]) for name in drawn}
    # Who has no work class has no occupation either.
    idle = pa.array(drawn["workclass"] == CATEGORIES["workclass"].split().index("?"))
    columns["occupation"] = pa.compute.if_else(idle, "?", columns["occupation"])
    columns |= {
        "age": age,
        "fnlwgt": rng.integers(12_285, 400_000, rows),
        "education-num": education,
        "capital-gain": gain,
        "capital-loss": np.where(some(rng, rows, 0.047), rng.integers(1400, 2600, rows), 0),
        "hours-per-week": hours,
        "income": pick(["<=50K", ">50K"], rich),
    }
    # Each thousandth row is a copy of the row before.
    from_row = np.arange(rows)
    from_row[999::1000] -= 1
    path = folder / FILE
    cells = {name: pa.array(columns[name]).take(pa.array(from_row)) for name in COLUMNS}
    write_lines(path, cells, separator=", ", header=False, end="\n")
    return path
