"""KuaiRand-Pure in small, as its CSV files, and what the logs of it hold."""

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
REAL_DATA = ROOT / "../shared/data/KuaiRand-Pure"
# datasets/ is no package, and its scripts import each other as they do when they are run by path.
sys.path.insert(0, str(ROOT / "datasets"))
kuairand = importlib.import_module("kuairand")

LOG_FILE = "log_standard_4_22_to_5_08_pure.csv"
LOG = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
USER = (
    "user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,"
    "follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,"
    "register_days,register_days_range," + ",".join(f"onehot_feat{i}" for i in range(18))
)
VIDEO = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag"
)

Row = dict[str, Any]
NOON_3_MAY = 1651550400000  # 2022-05-03 12:00 in Beijing, 04:00 in UTC
DAY = 86_400_000


def exposure(user: int, video: int, day: int = 3, **values: Any) -> Row:
    """A row of the log at noon of `day` May."""
    time = NOON_3_MAY + (day - 3) * DAY
    return {"user_id": user, "video_id": video, "date": 20220500 + day, "hourmin": 1200, "time_ms": time} | values


def user(number: int, **values: Any) -> Row:
    return {"user_id": number, "user_active_degree": "full_active", "fans_user_num_range": "[10,100)"} | values


def video(number: int, **values: Any) -> Row:
    return {"video_id": number, "author_id": 70, "upload_dt": "2022-04-10", "music_type": "9.0"} | values


def write_csv(path: Path, header: str, rows: list[Row]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header.split(","), restval=0, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[Row]:
    with path.open() as file:
        return list(csv.DictReader(file))


TRAIN = [
    exposure(1, 10, day=1, long_view=1, duration_ms=9000),
    exposure(1, 11, day=2, duration_ms=20000),
    exposure(2, 10, day=3, is_like=1, duration_ms=9000),
    exposure(2, 11, day=3, time_ms=NOON_3_MAY + 1, duration_ms=20000),
]
# Often enough for a vocabulary, but not in train.
VALID = [
    exposure(3, 12, day=4, long_view=1, duration_ms=12000),
    exposure(3, 12, day=5, duration_ms=12000),
    exposure(1, 10, day=5, time_ms=NOON_3_MAY + 2 * DAY + 1, duration_ms=9000),
]
USERS = [user(1), user(2, onehot_feat4="1.0"), user(3, user_active_degree="low_active", onehot_feat4="")]
VIDEOS = [video(10, tag="20,43"), video(11, tag="43"), video(12, tag="", music_type="4.0")]


def write_raw(folder: Path) -> Path:
    """Makes a folder with two users and two videos in train, and one new of each in valid."""
    folder.mkdir()
    write_csv(folder / LOG_FILE, LOG, TRAIN + VALID)
    write_csv(folder / "user_features_pure.csv", USER, USERS)
    write_csv(folder / "video_features_basic_pure.csv", VIDEO, VIDEOS)
    return folder


def column(out: Path, split: str, name: str) -> list[Any]:
    return pq.read_table(out / split, columns=[name])[name].to_pylist()


def vocabulary(out: Path, name: str) -> dict[Any, int]:
    table = pq.read_table(out / "vocabulary" / f"{name}.parquet")
    return dict(zip(table["value"].to_pylist(), table["id"].to_pylist(), strict=True))
