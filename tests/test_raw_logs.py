"""Drawn raw files look like the real ones, and the specs in datasets/ name the columns that they have."""

import csv
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pytest
from sklearn.metrics import roc_auc_score

from stem_torchrec.config.yaml_text import parse_yaml

from kuairand_files import LOG, ROOT, USER, VIDEO
from raw_logs import adult, ali_ccp, aliexpress, shop, tenrec, tiktok
from raw_logs.kuairand import PERIODS, REPEATS, Version, write_kuairand

ROWS = 4000
DATASETS = ROOT / "datasets"
REAL = ROOT / "../shared/data"
WRITERS: dict[str, Callable[[Path, int, int], Any]] = {
    "kuairand_pure": lambda folder, rows, seed: write_kuairand(folder, rows, seed, "pure"),
    "kuairand_1k": lambda folder, rows, seed: write_kuairand(folder, rows, seed, "1k"),
    "kuairand_27k": lambda folder, rows, seed: write_kuairand(folder, rows, seed, "27k"),
    "tiktok": lambda folder, rows, seed: tiktok.write_tiktok(folder / tiktok.FILE, rows, seed),
    "tenrec_qk_video": lambda folder, rows, seed: tenrec.write_tenrec(folder, rows, seed, "QK"),
    "tenrec_qb_video": lambda folder, rows, seed: tenrec.write_tenrec(folder, rows, seed, "QB"),
    "aliexpress": lambda folder, rows, seed: aliexpress.write_aliexpress(folder, rows, seed),
    "ali_ccp": lambda folder, rows, seed: ali_ccp.write_ali_ccp(folder, rows, seed),
    "adult": lambda folder, rows, seed: adult.write_adult(folder, rows, seed),
    "shop": lambda folder, rows, seed: shop.write_shop(folder, rows, seed),
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of each data set, in a folder of the name of its spec."""
    folder = tmp_path_factory.mktemp("raw")
    for name, write in WRITERS.items():
        (folder / name).mkdir()
        write(folder / name, ROWS, 0)
    return folder


def read(path: Path, separator: str = ",") -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file, delimiter=separator))


def table(path: Path, columns: tuple[str, ...] | None = None, separator: str = ",") -> pa.Table:
    """The cells as text; with `columns`, the file has no header."""
    names = columns or tuple(read(path, separator)[0])
    return pa_csv.read_csv(
        path,
        pa_csv.ReadOptions(column_names=names, skip_rows=columns is None),
        pa_csv.ParseOptions(delimiter=separator),
        pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def numbers(cells: pa.ChunkedArray) -> np.ndarray:
    return cells.cast(pa.int64()).to_numpy()


@pytest.mark.parametrize("name", WRITERS)
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(name: str, raw: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        WRITERS[name](folder, ROWS, seed)
    files = [path.relative_to(raw / name) for path in (raw / name).rglob("*") if path.is_file()]
    assert files
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (raw / name / file).read_bytes()
        assert (tmp_path / "1" / file).read_bytes() != (raw / name / file).read_bytes()


@pytest.mark.parametrize("spec", sorted(DATASETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_spec_names_the_files_and_their_columns(spec: Path, raw: Path) -> None:
    content = parse_yaml(spec.read_text())
    folder = raw / spec.stem.removesuffix("_by_time")
    variables = {name: text or "" for name, text in content["variables"].items()}
    for source in content["sources"].values():
        pattern = source["files"].replace("${raw}/", "")
        for name, text in variables.items():
            pattern = pattern.replace(f"${{{name}}}", text)
        files = sorted(folder.glob(re.sub(r"\{\w+\}", "*", pattern)))
        assert files
        for file in files:
            first = read(file, source.get("delimiter", ","))[0]
            if source.get("header", True):
                assert set(source["columns"]) <= set(first)
            else:
                assert len(source["columns"]) == len(first)
    assert re.search(r"[\w-]+\.(com|org|io|xyz|edu)/?|no address", spec.read_text().split("format:")[0])


@pytest.mark.parametrize("version", ["pure", "1k", "27k"])
def test_kuairand_has_the_files_and_columns_of_each_version(version: Version, raw: Path) -> None:
    folder = raw / f"kuairand_{version}"
    parts = ("_part1", "_part2") if version == "27k" else ("",)
    logs = {f"log_standard_{period}_{version}{part}.csv" for period in PERIODS for part in parts}
    logs.add(f"log_random_4_22_to_5_08_{version}.csv")
    sides = {f"user_features_{version}.csv": USER, f"video_features_basic_{version}.csv": VIDEO}
    assert {path.name for path in folder.iterdir()} == logs | set(sides)
    headers = dict.fromkeys(logs, LOG) | sides
    assert {name: ",".join(read(folder / name)[0]) for name in headers} == headers
    rows = sum(len(read(folder / name)) - 1 for name in logs if "standard" in name)
    assert ROWS <= rows < ROWS * (1 + 2 * REPEATS)


def test_kuairand_has_the_oddities_of_the_real_files(raw: Path) -> None:
    folder = raw / "kuairand_pure"
    log = table(folder / "log_standard_4_22_to_5_08_pure.csv")
    keys = list(zip(*(log[name].to_pylist() for name in ("user_id", "video_id", "time_ms")), strict=True))
    assert 0.01 < 1 - len(set(keys)) / len(keys) < 0.05
    assert set(log["is_rand"].to_pylist()) == {"0"}
    day = numbers(log["date"])
    assert day.min() == 20220422
    assert {20220430, 20220501} <= set(day) <= {*range(20220422, 20220431), *range(20220501, 20220510)}
    assert not (numbers(log["hourmin"]) % 100).any()
    users, videos = (table(folder / name) for name in ("user_features_pure.csv", "video_features_basic_pure.csv"))
    assert set(users["is_live_streamer"].to_pylist()) == {"1", "-124"}
    assert {"", "0.0", "1.0"} == set(users["onehot_feat12"].to_pylist())
    assert '"[10,100)"' in (folder / "user_features_pure.csv").read_text()
    assert {"9.0", "4.0"} <= set(videos["music_type"].to_pylist())
    assert any(re.fullmatch(r"\d+,\d+", tag) for tag in videos["tag"].to_pylist())


def test_tiktok_is_whole_numbers_with_the_shares_of_the_real_file(tmp_path: Path) -> None:
    # More rows than are drawn at a time.
    path, rows = tmp_path / tiktok.FILE, 70_000
    tiktok.write_tiktok(path, rows, seed=3)
    lines = path.read_bytes()
    assert re.fullmatch(rb"(?:(?:-1|\d+)(?:\t|\n))+", lines)
    log = table(path, tiktok.COLUMNS, "\t")
    assert log.num_rows == rows == lines.count(b"\n")
    values = {name: numbers(log[name]) for name in tiktok.COLUMNS}
    assert values["finish"].mean() == pytest.approx(0.283, abs=0.03)
    assert values["like"].mean() == pytest.approx(0.016, abs=0.005)
    assert {name for name, column in values.items() if column.min() < 0} == {"user_city", "item_city", "music_id"}
    assert set(values["channel"]) <= set(range(5))
    assert values["time"].min() >= tiktok.FIRST_TIME
    assert values["time"].max() < tiktok.FIRST_TIME + tiktok.DAYS * 86_400
    # What belongs to a video is the same in all of its rows.
    videos = set(zip(*(values[name] for name in ("item_id", "author_id", "music_id", "time")), strict=True))
    assert len(videos) == len(set(values["item_id"]))
    most = Counter(values["item_id"]).most_common(700)
    assert 0.2 < sum(count for _, count in most) / rows < 0.6


def test_tenrec_has_blocks_of_users_unknown_categories_and_repeats(raw: Path) -> None:
    log = table(raw / "tenrec_qk_video/QK-video.csv")
    assert tuple(log.column_names) == tenrec.COLUMNS
    assert log.num_rows == ROWS
    assert (np.diff(numbers(log["user_id"])) >= 0).all()
    assert set(log["video_category"].to_pylist()) == {"0", "1", r"\N"}
    assert len(set(zip(*log.to_pydict().values(), strict=True))) < ROWS
    click = numbers(log["click"]) > 0
    for name in ("follow", "like", "share", "watching_times"):
        assert not numbers(log[name])[~click].any()


def test_aliexpress_has_pages_of_results_in_both_parts(raw: Path) -> None:
    rows = {}
    for part in ("train", "test"):
        log = table(raw / f"aliexpress/AliExpress_NL/{part}.csv")
        rows[part] = log.num_rows
        assert tuple(log.column_names) == aliexpress.COLUMNS
        search = numbers(log["search_id"])
        assert search.min() == 3
        pages = {tuple(row) for row in zip(search, *(log[f"categorical_{i}"].to_pylist() for i in (1, 9)), strict=True)}
        assert len(pages) == len(set(search))
        assert set(log["numerical_59"].to_pylist()) == {"0"}
        values = log["numerical_30"].cast(pa.float64()).to_numpy()
        assert 0 <= values.min() < values.max() <= 1
        assert not numbers(log["conversion"])[numbers(log["click"]) == 0].any()
    assert rows == {"train": ROWS * 7 // 10, "test": ROWS * 3 // 10}


def fields_of(features: str) -> list[tuple[str, int, float]]:
    triples = [re.fullmatch(r"(\w+)\x02(\d+)\x03([\d.]+)", feature) for feature in features.split("\x01")]
    return [(triple[1], int(triple[2]), float(triple[3])) for triple in triples if triple]


def test_ali_ccp_has_features_between_control_characters(raw: Path) -> None:
    for part, rows in (("train", ROWS), ("test", ROWS // 2)):
        skeleton = read(raw / f"ali_ccp/sample_skeleton_{part}.csv")
        common = {index: features for index, _, features in read(raw / f"ali_ccp/common_features_{part}.csv")}
        assert [int(row[0]) for row in skeleton] == list(range(1, rows + 1))
        assert {row[3] for row in skeleton} <= set(common)
        assert all(re.fullmatch("[0-9a-f]{16}", index) for index in common)
        for _, _, _, _, number, features in skeleton:
            assert len(fields_of(features)) == int(number) == features.count("\x03")
        seen = Counter(field for row in skeleton for field, _, _ in fields_of(row[5]))
        assert set(seen) == {"205", *ali_ccp.ITEM_SINGLE, "210", "301", *ali_ccp.COMBINED}
        of_users = Counter(field for features in common.values() for field, _, _ in fields_of(features))
        assert set(of_users) == {"101", *ali_ccp.PROFILE, *ali_ccp.HISTORIES}
        # A field can be there several times, or not at all.
        assert seen["210"] > rows > seen["216"]
        assert sum(row[1] == "1" for row in skeleton) == pytest.approx(0.039 * rows, rel=0.1)
    assert ["0", "1"] in [row[1:3] for row in read(raw / "ali_ccp/sample_skeleton_train.csv")]


def test_ali_ccp_plants_a_leak_on_request(tmp_path: Path) -> None:
    ali_ccp.write_ali_ccp(tmp_path, 5000, leak="301")
    for part in ("train", "test"):
        for _, click, _, _, number, features in read(tmp_path / f"sample_skeleton_{part}.csv"):
            ids = [id for field, id, _ in fields_of(features) if field == "301"]
            assert ids == [9_990_000 + int(click)]
            assert int(number) == features.count("\x03")


def check_adult(path: Path) -> int:
    """The rows of the file, after what holds for the real one too."""
    text = path.read_text()
    assert text.endswith("K\n\n")
    rows = [line.split(", ") for line in text.rstrip("\n").split("\n")]
    assert {len(row) for row in rows} == {len(adult.COLUMNS)}
    columns = dict(zip(adult.COLUMNS, zip(*rows, strict=True), strict=True))
    assert set(columns["income"]) == {"<=50K", ">50K"}
    assert {name for name, column in columns.items() if "?" in column} == {"workclass", "occupation", "native-country"}
    assert set(columns["sex"]) == {"Male", "Female"}
    assert len({tuple(row) for row in rows}) < len(rows)
    idle = [
        occupation for work, occupation in zip(columns["workclass"], columns["occupation"], strict=True) if work == "?"
    ]
    assert set(idle) == {"?"}
    assert "Never-married" in columns["marital-status"]
    return len(rows)


def test_adult_looks_like_the_real_file(raw: Path) -> None:
    assert check_adult(raw / "adult" / adult.FILE) == ROWS


@pytest.mark.skipif(not (REAL / "adult").exists(), reason="Adult is not in ../shared/data")
def test_the_real_adult_file_is_as_drawn() -> None:
    assert check_adult(REAL / "adult" / adult.FILE) == 32_561


def check_shop(path: Path) -> int:
    """The rows of the file, after what holds for the real one too."""
    pairs = table(path, shop.COLUMNS, "\t")
    keys = set(zip(pairs["user_id"].to_pylist(), pairs["item_id"].to_pylist(), strict=True))
    assert len(keys) == pairs.num_rows
    shares = np.bincount(numbers(pairs["depth"])) / pairs.num_rows
    assert shares == pytest.approx([0.5, 0.367, 0.079, 0.054], abs=0.01)
    return pairs.num_rows


def test_shop_looks_like_the_real_file(raw: Path) -> None:
    assert check_shop(raw / "shop" / shop.FILE) == ROWS


@pytest.mark.skipif(not (REAL / "shop").exists(), reason="the shop is not in ../shared/data")
def test_the_real_shop_file_is_as_drawn() -> None:
    assert check_shop(REAL / "shop" / shop.FILE) == 243_148


def test_labels_depend_on_features_weakly(tmp_path: Path) -> None:
    # Enough rows that a value's mean over half of them tells something of the other half.
    rows = 30_000
    write_kuairand(tmp_path / "kuairand", rows)
    tiktok.write_tiktok(tmp_path / tiktok.FILE, rows)
    qb = table(tenrec.write_tenrec(tmp_path, rows, app="QB"))
    people = table(adult.write_adult(tmp_path, rows), adult.COLUMNS)
    views = table(tmp_path / "kuairand/log_standard_4_22_to_5_08_pure.csv")
    pairs = table(shop.write_shop(tmp_path, rows), shop.COLUMNS, "\t")
    plays = table(tmp_path / tiktok.FILE, tiktok.COLUMNS, "\t")
    for cells, label in (
        (views["video_id"], numbers(views["long_view"])),
        (plays["uid"], numbers(plays["finish"])),
        (plays["item_id"], numbers(plays["finish"])),
        (qb["user_id"], numbers(qb["click"])),
        (people["education"], np.array([cell == " >50K" for cell in people["income"].to_pylist()])),
        (pairs["user_id"], numbers(pairs["depth"]) > 0),
    ):
        assert 0.55 < auc_of_means(cells, label) < 0.85


def auc_of_means(cells: pa.ChunkedArray, label: np.ndarray) -> float:
    """AUC on every second row of the mean label that a value has in the others."""
    value = np.unique(cells.to_numpy(), return_inverse=True)[1]
    count, positive = (np.bincount(value[::2], weight, len(value)) for weight in (None, label[::2]))
    mean = (positive + 1) / (count + 2)
    return roc_auc_score(label[1::2], mean[value[1::2]])
