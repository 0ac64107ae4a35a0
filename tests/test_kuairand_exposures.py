"""datasets/kuairand.py --reconstructed: earlier exposures of KuaiRand-Pure as the training part."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError

from kuairand_files import VIDEO, column, kuairand, video, vocabulary, write_csv, write_raw

# Four exposures of user 1, and one of user 2, which is the start of its history.
EXPOSURES: dict[str, Any] = {
    "user_id": [2, 1, 1, 1, 1],
    "video_id": [12, 10, 11, 10, 12],
    "pos_in_history": [0, 3, 0, 1, 2],
    "is_like": [0, 0, 1, 0, 0],
    "long_view": [1, 0, 0, 1, 0],
}


def convert(tmp_path: Path, exposures: dict[str, Any] = EXPOSURES, **options: Any) -> Path:
    """Writes the log with `exposures` for its training part and returns its folder."""
    raw, path, out = write_raw(tmp_path / "raw"), tmp_path / "exposures.parquet", tmp_path / "out"
    lengths = {10: 9000, 11: 20000, 12: 0}
    write_csv(raw / "video_features_basic_pure.csv", VIDEO, [video(i, video_duration=ms) for i, ms in lengths.items()])
    pq.write_table(pa.table(exposures), path)
    kuairand.write_log(kuairand.Options(raw=raw, out=out, min_count=1, reconstructed=path, report=False, **options))
    return out


def test_training_rows_are_the_exposures_sorted_by_position_in_the_history(tmp_path: Path) -> None:
    out = convert(tmp_path, features="user_id,video_id")
    assert column(out, "train", "group_user_id") == [1, 2, 1, 1, 1]
    videos = vocabulary(out, "video_id")
    assert column(out, "train", "video_id") == [videos[i] for i in (11, 12, 10, 12, 10)]
    assert column(out, "train", "long_view") == [0, 1, 1, 0, 0]
    assert column(out, "train", "is_like") == [1, 0, 0, 0, 0]


def test_other_splits_are_the_days_of_the_log(tmp_path: Path) -> None:
    out = convert(tmp_path, features="user_id")
    assert column(out, "valid", "group_user_id") == [3, 3, 1]
    assert column(out, "valid", "long_view") == [1, 0, 0]
    assert column(out, "valid", "user_id") == [0, 0, vocabulary(out, "user_id")[1]]
    assert "train reconstructed from sequences of users" in load_schema(str(out)).description


def test_duration_is_that_of_the_video_and_unknown_features_are_left_out(tmp_path: Path) -> None:
    out = convert(tmp_path)
    # Only one edge lies below the longest of three lengths; video 12 is a picture, without a length.
    assert vocabulary(out, "duration_bucket") == {9000: 1}
    assert column(out, "train", "duration_bucket") == [1, 0, 1, 0, 1]
    names = [feature.name for feature in load_schema(str(out)).sparse_features]
    assert {"tab", "hour", "video_age_bucket"}.isdisjoint(names)
    assert {"user_id", "author_id", "onehot_feat4"} <= set(names)


@pytest.mark.parametrize(
    ("exposures", "options", "sentence"),
    [
        (EXPOSURES, {"features": "user_id,tab"}, "names 'tab', which is not among its columns"),
        (EXPOSURES, {"labels": "is_like,is_click"}, "names 'is_click'"),
        ({**EXPOSURES, "long_view": [1, 0, 2, 0, 0]}, {}, "exposures.parquet has 2 in column 'long_view'"),
        ({**EXPOSURES, "user_id": [1, None, 1, 1, 1]}, {}, "an empty cell in column 'user_id'"),
        ({**EXPOSURES, "video_id": list("abcde")}, {}, "cannot be read .column 'video_id': .*'e'"),
        ({k: v for k, v in EXPOSURES.items() if k != "pos_in_history"}, {}, "has no column 'pos_in_history'"),
    ],
)
def test_wrong_exposures_are_one_sentence(
    tmp_path: Path, exposures: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        convert(tmp_path, exposures, **options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_no_exposures_is_one_sentence(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")
    options = kuairand.Options(raw=raw, out=tmp_path / "out", reconstructed=tmp_path / "none.parquet")
    with pytest.raises(UserError, match=r"none\.parquet cannot be read .*download it again"):
        kuairand.write_log(options)
