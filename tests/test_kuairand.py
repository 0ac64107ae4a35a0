"""The spec kuairand_pure and datasets/kuairand.py: features, splits, and errors for broken files."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import LabelCounts, load_schema
from stem_torchrec.preparation.specs.spec_file import read_spec
from stem_torchrec.runtime.errors import UserError

from kuairand_files import (
    LOG,
    LOG_FILE,
    NOON_3_MAY,
    REAL_DATA,
    ROOT,
    TRAIN,
    USER,
    VALID,
    VIDEO,
    Row,
    column,
    exposure,
    kuairand,
    read_rows,
    user,
    video,
    vocabulary,
    write_csv,
    write_raw,
)
from raw_logs.kuairand import write_kuairand


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw")


@pytest.fixture
def convert(raw: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the log of `raw`, with two features unless others are named, and returns its folder."""

    def run(**options: Any) -> Path:
        out, features = tmp_path / "out", options.pop("features", "user_id,tab")
        kuairand.write_log(kuairand.Options(raw=raw, out=out, features=features, report=False, **options))
        return out

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of `raw`, with all features."""
    folder = tmp_path_factory.mktemp("made")
    kuairand.write_log(kuairand.Options(raw=write_raw(folder / "raw"), out=folder / "out", report=False))
    return folder / "out"


def test_exposure_outcomes_are_never_features(convert: Callable[..., Path]) -> None:
    outcomes = ["play_time_ms", "profile_stay_time", "comment_stay_time", "hourmin", *kuairand.FEEDBACK]
    assert not set(outcomes) & set(read_spec(kuairand.SPEC, ["raw=x"]).features)
    for name in outcomes:
        with pytest.raises(UserError, match=f"'{name}', which is known only after the exposure"):
            convert(features=f"user_id,{name}")


def test_hour_is_when_the_exposure_began_not_when_it_was_logged(raw: Path, convert: Callable[..., Path]) -> None:
    rows = [row | {"hourmin": 1300} for row in TRAIN + VALID]
    write_csv(raw / LOG_FILE, LOG, rows)
    assert vocabulary(convert(features="hour"), "hour") == {12: 1}


def test_vocabularies_come_from_training_only(made: Path) -> None:
    assert vocabulary(made, "user_id") == {1: 1, 2: 2}
    assert column(made, "valid", "user_id") == [0, 0, 1]
    assert column(made, "valid", "group_user_id") == [3, 3, 1]
    assert vocabulary(made, "user_active_degree") == {"full_active": 1}
    assert column(made, "valid", "music_type") == [0, 0, 1]


def test_bucket_edges_come_from_training_only(made: Path) -> None:
    assert vocabulary(made, "duration_bucket") == {9000: 1, 20000: 2}
    assert column(made, "valid", "duration_bucket") == [1, 1, 1]


def test_rare_values_are_id_0(convert: Callable[..., Path]) -> None:
    out = convert(min_count=3)
    assert vocabulary(out, "user_id") == {}
    assert load_schema(str(out)).sparse_features[0].num_embeddings == 1
    assert set(column(out, "train", "user_id")) == {0}


def test_ids_descend_with_count_then_ascend_with_value(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / LOG_FILE, LOG, [*TRAIN, exposure(2, 11, time_ms=NOON_3_MAY + 2), *VALID])
    out = convert(min_count=1, features="user_id,video_id,tag")
    assert vocabulary(out, "user_id") == {2: 1, 1: 2}
    assert vocabulary(out, "tag") == {43: 1, 20: 2}
    assert column(out, "train", "video_id") == [2, 1, 2, 1, 1]


def test_tags_are_lists_and_no_tag_is_no_list(made: Path) -> None:
    assert vocabulary(made, "tag") == {43: 1, 20: 2}
    assert column(made, "train", "tag") == [[2, 1], [1], [2, 1], [1]]
    assert column(made, "valid", "tag") == [None, None, [2, 1]]


def test_null_features_are_id_0(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / "user_features_pure.csv", USER, [user(1, onehot_feat4=""), user(2, onehot_feat4="1.0")])
    out = convert(features="onehot_feat4")
    assert vocabulary(out, "onehot_feat4") == {1: 1}
    assert column(out, "train", "onehot_feat4") == [0, 0, 1, 1]


def test_repeated_exposures_are_dropped(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / LOG_FILE, LOG, [*TRAIN, TRAIN[0] | {"long_view": 0, "date": 20220504}, *VALID])
    out = convert()
    assert column(out, "train", "long_view") == [1, 0, 0, 0]
    assert len(column(out, "valid", "long_view")) == 3


def test_split_is_chronological(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / LOG_FILE, LOG, (TRAIN + VALID)[::-1])
    out = convert()
    train, valid = column(out, "train", "time_ms"), column(out, "valid", "time_ms")
    assert train + valid == sorted(row["time_ms"] for row in TRAIN + VALID)
    assert (len(train), len(valid)) == (4, 3)
    assert not (out / "test").exists()


def test_later_days_are_test(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / LOG_FILE, LOG, [*TRAIN, *VALID, exposure(2, 10, day=6), exposure(9, 10, day=8)])
    out = convert()
    assert column(out, "test", "user_id") == [2, 0]
    assert load_schema(str(out)).splits["test"].rows == 2


def test_every_standard_log_is_read(raw: Path, convert: Callable[..., Path]) -> None:
    earlier = [exposure(2, 10, day=-10, date=20220420)]
    write_csv(raw / "log_standard_4_08_to_4_21_pure.csv", LOG, earlier)
    write_csv(raw / "log_random_4_22_to_5_08_pure.csv", LOG, [exposure(7, 10)])
    assert column(convert(), "train", "group_user_id") == [2, 1, 1, 2, 2]


def test_schema_counts_positives_and_missing_labels(raw: Path, convert: Callable[..., Path]) -> None:
    write_csv(raw / LOG_FILE, LOG, [*TRAIN, exposure(2, 10, time_ms=NOON_3_MAY + 2, is_like=""), *VALID])
    schema = load_schema(str(convert(labels="is_like,long_view", features="tab,user_id")))
    assert schema.labels == ("is_like", "long_view")
    assert [feature.name for feature in schema.sparse_features] == ["tab", "user_id"]
    assert schema.splits["train"].labels == {"is_like": LabelCounts(1, 1), "long_view": LabelCounts(1, 0)}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": "long_veiw"}, "did you mean 'long_view'"),
        ({"labels": ","}, "names no column; choose from is_click"),
        ({"features": "autor_id"}, "did you mean 'author_id'"),
        ({"train_until": 20220401}, "split leaves train without rows"),
        ({"valid_until": 20220503}, "split leaves valid without rows"),
    ],
)
def test_wrong_option_is_one_sentence(convert: Callable[..., Path], options: Row, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        convert(**options)


@pytest.mark.parametrize(
    ("file", "header", "row", "sentence"),
    [
        (LOG_FILE, LOG, exposure(1, 10, duration_ms="long"), "line 2: column 'duration_ms' has 'long'"),
        (LOG_FILE, LOG, exposure(1, 10, is_like=2), "line 2, but must be 0, 1 or missing"),
        (LOG_FILE, LOG.removesuffix(",tab"), exposure(1, 10), "lacks; it has user_id"),
        ("video_features_basic_pure.csv", VIDEO, video(10, upload_dt="May"), "line 2: column 'upload_dt' has 'May'"),
    ],
)
def test_malformed_cell_is_one_sentence(
    raw: Path, convert: Callable[..., Path], file: str, header: str, row: Row, sentence: str
) -> None:
    write_csv(raw / file, header, [row, *(TRAIN + VALID if file == LOG_FILE else [])])
    with pytest.raises(UserError, match=f"{file}.*{sentence}") as error:
        convert(features="tab,duration_bucket,video_age_bucket")
    assert "\n" not in str(error.value)


def test_row_with_missing_cells_is_one_sentence(raw: Path, convert: Callable[..., Path]) -> None:
    with (raw / LOG_FILE).open("a") as file:
        file.write("1,2,3\r\n")
    with pytest.raises(UserError, match=f"{LOG_FILE}, line 9: the line has 3 cells, not 19"):
        convert()


def test_missing_or_empty_file_is_one_sentence(raw: Path, convert: Callable[..., Path]) -> None:
    header = (raw / LOG_FILE).read_text().splitlines()[0]
    (raw / LOG_FILE).write_text(header + "\n")
    with pytest.raises(UserError, match=r"has no rows in .*log_standard_\*_pure\.csv"):
        convert()
    (raw / "user_features_pure.csv").unlink()
    with pytest.raises(UserError, match=r"user_features_pure\.csv', of which no file exists"):
        convert()


def test_a_log_is_replaced_only_when_asked(convert: Callable[..., Path]) -> None:
    out = convert()
    with pytest.raises(UserError, match="--overwrite replaces it"):
        convert()
    convert(overwrite=True, labels="is_like")
    assert load_schema(str(out)).labels == ("is_like",)
    (out / "thesis.txt").touch()
    with pytest.raises(UserError, match="give another folder"):
        convert(overwrite=True)


def digest(split: Path) -> str:
    """Of the columns in the order of their names: the numbers of all rows, of lists their lengths and elements."""
    table, hash_ = pq.read_table(split), hashlib.sha256()
    for name in sorted(table.column_names):
        values = table[name].combine_chunks()
        parts = [values]
        if pa.types.is_list(values.type):
            parts = [pc.fill_null(pc.list_value_length(values), 0), pc.list_flatten(values)]
        hash_.update(name.encode())
        for part in parts:
            hash_.update(pc.fill_null(part.cast(pa.int64()), -1).to_numpy().tobytes())
    return hash_.hexdigest()[:16]


def row_groups(split: Path) -> list[int]:
    metadata = pq.ParquetFile(split / "part-00000.parquet").metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def test_a_log_has_the_values_that_the_script_of_its_own_wrote(tmp_path: Path) -> None:
    """With the same features in the same row groups, a run has the same numbers as on the logs of that script."""
    write_kuairand(tmp_path / "raw", 4000)
    kuairand.write_log(kuairand.Options(raw=tmp_path / "raw", out=tmp_path / "out", report=False))
    assert {split: digest(tmp_path / "out" / split) for split in ("train", "valid", "test")} == {
        "train": "b37b6c4aca560572",
        "valid": "4dd17c5ad43e58a6",
        "test": "fbd1b06c590ef948",
    }


@pytest.mark.long
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs KuaiRand-Pure in ../shared/data")
def test_the_real_log_has_the_values_that_the_script_of_its_own_wrote(tmp_path: Path) -> None:
    kuairand.write_log(kuairand.Options(raw=REAL_DATA, out=tmp_path / "out", report=False))
    splits = {split: tmp_path / "out" / split for split in ("train", "valid")}
    assert {name: digest(split) for name, split in splits.items()} == {
        "train": "7515010c076f61ca",
        "valid": "4d52232f4d24554e",
    }
    assert {name: row_groups(split) for name, split in splits.items()} == {
        "train": [65_536, 65_536, 18_660],
        "valid": [30_290],
    }


def test_command_line_prints_the_sizes_or_one_sentence(raw: Path, tmp_path: Path) -> None:
    (raw / "data").mkdir()
    for path in raw.glob("*.csv"):
        path.rename(raw / "data" / path.name)
    script = [sys.executable, "datasets/kuairand.py", "--raw", str(raw), "--out", str(tmp_path / "out")]
    some = ["--labels", "long_view,is_like", "--features", "user_id,tab", "--no-report"]
    good = subprocess.run([*script, *some], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "train         4  1 (25.00%)   1 (25.00%)" in good.stdout
    wrong = subprocess.run(
        [*script, "--features", "play_time_ms"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: --features names 'play_time_ms'")
    assert wrong.stderr.count("\n") == 1


@pytest.mark.long
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs KuaiRand-Pure in ../shared/data")
def test_real_log_reads_back_as_the_csv_says(tmp_path: Path) -> None:
    out = tmp_path / "out"
    features = ("user_id", "video_id", "author_id", "tag", "onehot_feat4", "upload_type")
    kuairand.write_log(kuairand.Options(raw=REAL_DATA, out=out, features=",".join(features)))
    raw = REAL_DATA / "data"
    users = {row["user_id"]: row for row in read_rows(raw / "user_features_pure.csv")}
    videos = {row["video_id"]: row for row in read_rows(raw / "video_features_basic_pure.csv")}
    expected: dict[tuple[int, ...], Row] = {}
    for path in sorted(raw.glob("log_standard_*.csv")):
        for row in read_rows(path):
            key = tuple(int(row[name]) for name in ("user_id", "video_id", "time_ms"))
            expected.setdefault(key, row | users[row["user_id"]] | videos[row["video_id"]])
    words = {name: {i: value for value, i in vocabulary(out, name).items()} for name in features}

    schema = load_schema(str(out))
    written = {name: pq.read_table(out / name).to_pylist() for name in schema.splits}
    assert sum(len(rows) for rows in written.values()) == len(expected)
    for split, rows in written.items():
        assert schema.splits[split].rows == len(rows)
        for row in rows:
            # The raw id of an unseen video is not written, so its row cannot be found in the CSV.
            video_id = words["video_id"].get(row["video_id"])
            if video_id is None:
                continue
            source = expected[row["group_user_id"], video_id, row["time_ms"]]
            assert (int(source["date"]) <= 20220503) == (split == "train")
            assert (row["long_view"], row["is_like"]) == (int(source["long_view"]), int(source["is_like"]))
            tags = [int(tag) for tag in source["tag"].split(",") if tag]
            assert [words["tag"].get(i) for i in row["tag"] or ()] == [
                t if t in words["tag"].values() else None for t in tags
            ]
            for name in ("author_id", "onehot_feat4"):
                assert not row[name] or words[name][row[name]] == float(source[name])
            assert not row["upload_type"] or words["upload_type"][row["upload_type"]] == source["upload_type"]
