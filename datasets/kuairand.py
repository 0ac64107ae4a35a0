"""Prepares KuaiRand-Pure by its spec, kuairand_pure.yaml, with options for the fields that people change.

python datasets/kuairand.py --raw KuaiRand-Pure --out data/kuairand_pure

Without options it is `stem-prepare kuairand_pure --set raw=KuaiRand-Pure/data --out data/kuairand_pure`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import tyro
from annotated_types import Interval
from kuairand_exposures import LABELS, UNKNOWN, settings_of_exposures

from stem_torchrec.config.command_line import parse_arguments
from stem_torchrec.config.yaml_text import parse_yaml
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.path_options import PathOption

SPEC = Path(__file__).with_name("kuairand_pure.yaml")
FEEDBACK = (
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate"),
    *("long_view", "is_profile_enter"),
)
FORBIDDEN = (*FEEDBACK, "play_time_ms", "profile_stay_time", "comment_stay_time", "date", "hourmin")
"""Columns known only after the exposure; the spec tells why."""

Day = Annotated[int, Interval(ge=10_000_101, le=99_991_231)]
"""A day as yyyymmdd."""


@dataclass(frozen=True)
class Options:
    """What to read, how to split it and where to write."""

    raw: Annotated[Path, PathOption("folder", local=True)]
    """Folder with the CSV files of KuaiRand-Pure, or the folder above it, which contains `data/`."""
    out: Annotated[Path, PathOption("folder", writes=True, local=True)]
    """Folder to write; it appears once it is complete."""
    train_until: Day = 20220503
    """Last day of the training part, as yyyymmdd."""
    valid_until: Day = 20220505
    """Last day of the validation part; later days are the test part."""
    labels: str = "long_view,is_like"
    """Feedback columns to predict, separated by commas."""
    features: str | None = None
    """Features to write, separated by commas; by default all."""
    min_count: Annotated[int, Interval(ge=1, le=10**9)] = 2
    """A value that occurs fewer times in the training part gets id 0, like an unseen one."""
    reconstructed: Annotated[Path, PathOption("file", local=True)] | None = None
    """Parquet file of earlier exposures, rebuilt from sequences of users: user_id, video_id, pos_in_history and the
    labels. They replace the log's days as the training part; the log then has no tab, hour and video_age_bucket."""
    report: bool = True
    """Writes report.html and report.md, and looks for leaks."""
    overwrite: bool = False
    """Replaces an existing log in `out`, and nothing but a log."""
    take_over: bool = False
    """Takes `out` from another process that makes the same log."""


def main() -> None:
    """Writes the log that the command line describes and prints its sizes."""
    print(write_log(parse_arguments(Options(tyro.MISSING, tyro.MISSING), description=__doc__ or "")))


def write_log(options: Options) -> str:
    """Writes the log to `options.out` and returns its sizes to print."""
    raw = options.raw / "data" if (options.raw / "data").is_dir() else options.raw
    with TemporaryDirectory() as folder:
        fields = changed_fields(options)
        if options.reconstructed is not None:
            labels = tuple(fields["labels"])
            fields |= settings_of_exposures(
                options.reconstructed, raw, Path(folder), labels, train_until=options.train_until
            )
        settings = (f"raw={raw}", *(f"{name}={json.dumps(value)}" for name, value in fields.items()))
        return prepare_log(
            PrepareOptions(
                spec=str(SPEC),
                out=str(options.out),
                set=settings,
                report=options.report,
                overwrite=options.overwrite,
                take_over=options.take_over,
            )
        )


def changed_fields(options: Options) -> dict[str, Any]:
    """Fields of the spec that the options replace."""
    features = parse_yaml(SPEC.read_text())["features"]
    if options.reconstructed is not None:
        features = {name: feature for name, feature in features.items() if name not in UNKNOWN}
    if options.features is not None:
        features = {name: features[name] for name in split_names(options.features, "--features", tuple(features))}
    labels = split_names(options.labels, "--labels", FEEDBACK if options.reconstructed is None else LABELS)
    vocabulary = {"vocabulary": {"min_count": options.min_count}}
    return {
        "split.time.train_until": options.train_until,
        "split.time.valid_until": options.valid_until,
        "labels": {name: name for name in labels},
        "features": {name: {**(feature or {}), **vocabulary} for name, feature in features.items()},
    }


def split_names(text: str, option: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Splits a comma separated option; raises UserError for a name that is not offered."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} is {text!r} and names no column; choose from {', '.join(offered)}.")
    for name in names:
        if name in FORBIDDEN and name not in offered:
            raise UserError(f"{option} names {name!r}, which is known only after the exposure; remove it.")
        if name not in offered:
            hint = nearest(name, offered) or f"; choose from {', '.join(offered)}."
            raise UserError(f"{option} names {name!r}, which is not among its columns{hint}")
    return names


if __name__ == "__main__":
    run_main(main)
