"""A path option means what it says, or is refused by name before anything starts; it is never taken literally."""

import importlib
import importlib.util
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from iopath.common.file_io import PathHandler

from stem_torchrec.calibration.calibrate_run import CalibrateConfig
from stem_torchrec.comparison import options as comparison
from stem_torchrec.config import DataConfig, TrainConfig, parse_arguments
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.data.folder import data_folder
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.file_systems import STORES, g_pathmgr
from stem_torchrec.runtime.internals.path_handlers import StoreHandler, handler_of
from stem_torchrec.runtime.path_options import PathOption, checked_path
from stem_torchrec.serving.export_run import ExportConfig
from stem_torchrec.serving.score_file import ScoreConfig
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.run_evaluation import EvaluateConfig
from stem_torchrec.transfer.convert_layout import ConvertConfig
from stem_torchrec.tuning import options as tune_options

from contest.run import ThroughputConfig
from kuairand_files import kuairand
from planning.config import read_options
from prequential.options import DaysOptions
from recovery.pauses import PauseConfig
from recovery.soak import FaultsConfig
from scorers.run import ServingConfig
from studies.exact_metrics import MetricsConfig
from studies.task_conflict import ConflictConfig
from sweep.config import SweepConfig

# datasets/ is no package; kuairand_files puts it on the path.
synthetic, synthetic_days = map(importlib.import_module, ("synthetic", "synthetic_days"))

FILE, FOLDER = PathOption("file"), PathOption("folder")
OUTPUT, OUTPUT_FILE = PathOption("folder", writes=True), PathOption("file", writes=True)


def refusal(text: str, option: PathOption = FOLDER) -> str:
    with pytest.raises(UserError) as error:
        checked_path(text, option)
    message = str(error.value)
    assert "\n" not in message
    return message


def evaluate(args: Sequence[str]) -> Any:
    return parse_arguments(EvaluateConfig(), args)


def convert(args: Sequence[str]) -> Any:
    return parse_arguments(ConvertConfig(), args)


def options_of(config: Any) -> Callable[[Sequence[str]], Any]:
    return lambda args: parse_arguments(config, args)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("parse", "names"),
    [
        (
            config_from_command_line,
            "--config --data.path --output-dir --resume --checkpoint.folder --sharding.plan",
        ),
        (evaluate, "--run --run-dir --data.path --json --predictions"),
        (convert, "--run --out"),
        (options_of(ExportConfig()), "--run --out --log"),
        (options_of(ScoreConfig()), "--bundle --input --output"),
        (options_of(CalibrateConfig()), "--run --run-dir --data.path --out"),
        (comparison.read_command_line, "--out --data.path --config"),
        (tune_options.read_command_line, "--out --space --data.path --config"),
        (read_options, "--out --tables --calibrate --config"),
        (options_of(SweepConfig()), "--out --tables"),
        *((options_of(each()), "--out") for each in (ThroughputConfig, FaultsConfig, PauseConfig)),
        *((options_of(each()), "--out") for each in (MetricsConfig, ConflictConfig)),
        (options_of(ServingConfig()), "--run --out --log"),
        (options_of(kuairand.Options(Path("raw"), Path("out"))), "--raw --out --reconstructed"),
        *((options_of(each.Options(out="out")), "--out") for each in (synthetic, synthetic_days)),
        (options_of(DaysOptions()), "--out --facts"),
    ],
)
def test_every_path_option_of_every_command_is_checked(parse: Callable[[Sequence[str]], Any], names: str) -> None:
    for name in names.split():
        for path in ("s4://bucket/key", "~no-such-user/x", "\ud800"):
            # --run-dir is another name of --run.
            with pytest.raises(UserError, match=f"^{name.removesuffix('-dir')}"):
                parse([name, path])


def test_a_scheme_without_a_file_system_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal("s4://bucket/a").startswith("s4://bucket/a cannot be opened: no file system is known for s4://")
    assert refusal("S3N://bucket/a").endswith("; did you mean 's3'?")
    assert "for simplecache://" in refusal("simplecache::s3://bucket/a")
    for text in ("s3:/bucket/a", "s3:bucket/a", "s3://", "s3:///a", "s3://bucket/../a", "s3://bucket//a"):
        assert refusal(text).endswith("is not a URL of a store; write s3://BUCKET/KEY, without empty parts and dots.")
    assert refusal("runs/s3://bucket") == (
        "runs/s3://bucket is neither a local path nor a URL; write a path without `://`."
    )
    assert refusal("s3://bucket", OUTPUT_FILE) == "s3://bucket is a folder; give a file."
    monkeypatch.setitem(STORES, "s3", ("s5fs", "s3"))  # type: ignore[index]
    assert refusal("s3://bucket/a") == (
        "s3://bucket/a needs s5fs, which is not installed; run: pip install 'stem_torchrec[s3]'"
    )


@pytest.mark.parametrize(
    ("url", "package"), [("gs://bucket", "gcsfs"), ("abfs://box@account.dfs.core.windows.net/a", "adlfs")]
)
def test_urls_of_stores_that_no_other_test_opens_are_taken_with_their_package(url: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        assert checked_path(url, FOLDER) == url
    else:
        assert f"needs {package}, which is not installed; run: pip install 'stem_torchrec[" in refusal(url)


def test_urls_of_stores_and_files_are_taken() -> None:
    assert checked_path("s3://bucket/a/", FOLDER) == "s3://bucket/a"
    assert checked_path("S3://bucket/a", OUTPUT) == "s3://bucket/a"
    assert checked_path("hdfs:///a", FOLDER) == "hdfs:///a"
    for url in ("file:///no/such folder", "file://localhost/no/such%20folder", "file:/no/such%20folder"):
        assert checked_path(url, FOLDER) == "/no/such folder"
    for url in ("file://no/such", "file:no/such"):
        assert "write file:///FOLDER/NAME" in refusal(url)
    odd = "/no/such a b 特征 #%?&'(x)"
    assert checked_path(odd, FOLDER) == odd
    assert checked_path(Path(odd).as_uri(), FOLDER) == odd


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/no/home")
    config = with_paths(TrainConfig(output_dir="~/runs/a", data=DataConfig(path="~/log")))
    assert (config.output_dir, config.data.path) == ("/no/home/runs/a", "/no/home/log")
    assert data_folder(DataConfig(path="~/log")) == "/no/home/log"
    assert "no home folder for ~no-such-user" in refusal("~no-such-user/x")


def test_handlers_of_a_users_own_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(PathHandler):
        def _get_supported_prefixes(self) -> list[str]:
            return ["own://"]

    assert handler_of(g_pathmgr, "own://a") is None
    monkeypatch.setattr(g_pathmgr, "_path_handlers", dict(g_pathmgr._path_handlers))
    g_pathmgr.register_handler(Own())
    assert isinstance(handler_of(g_pathmgr, "own://a"), Own)
    assert isinstance(handler_of(g_pathmgr, "s3://a"), StoreHandler)
    assert checked_path("own://a/", FOLDER) == "own://a"


def test_what_is_not_a_file_or_not_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    os.mkfifo("fifo")
    Path("loop").symlink_to("loop")
    Path("device").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("socket")
    for option in (FILE, OUTPUT_FILE):
        assert checked_path("file", option) == "file"
        assert refusal("folder", option) == "folder is a folder; give a regular file."
        for name in ("fifo", "device", "socket", "/dev/null"):
            assert refusal(name, option) == f"{name} is a device, FIFO or socket; give a regular file."
    for option in (FOLDER, OUTPUT):
        assert checked_path("folder", option) == "folder"
        for name in ("file", "fifo", "device", "socket", "/dev/null"):
            assert refusal(name, option) == f"{name} is not a folder; give a folder."
        assert "file/below cannot be used (Not a directory)" in refusal("file/below", option)
        assert "Too many levels of symbolic links" in refusal("loop", option)
    assert "ends as a folder does" in refusal("new/", OUTPUT_FILE)


def test_places_where_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("below").mkdir()
    Path("up").symlink_to(tmp_path.parent)
    for name in ("/", "//", ".", "..", "below/..", "up", "./"):
        assert "is the folder that you are in, or holds it" in refusal(name, OUTPUT)
    for name in ("/proc/x", "/dev/x", "/sys/x", "/dev/shm/../x"):
        assert "is in a folder of the system" in refusal(name, OUTPUT)
    assert checked_path("/dev/shm/no-such-run", OUTPUT) == "/dev/shm/no-such-run"
    monkeypatch.chdir("/proc")
    assert "is in a folder of the system" in refusal("runs/a", OUTPUT)


def test_nothing_is_written_among_the_rows_of_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("log", "run"):
        Path(name, "train/day=1").mkdir(parents=True)
        Path(name, "train/day=1/part-0.parquet").touch()
        Path(name, "schema.json").touch()
    Path("run/config.yaml").touch()
    Path("link").symlink_to("log/train")
    for name in ("log/train/new", "log/train", "log/train/day=1/a.json", "link/new"):
        for option in (OUTPUT, OUTPUT_FILE):
            if not (option is OUTPUT_FILE and Path(name).is_dir()):
                assert f"{name} is in train/ of the log {tmp_path}/log; give a path" in refusal(name, option)
    for name in ("run/train/new", "log/new", "other/train/new"):
        assert checked_path(name, OUTPUT) == name


def test_names_that_are_too_long_or_cannot_be_printed() -> None:
    for name in ("x" * 300, "x" * 250, "y/" * 2100, "y/" * 2000 + "z"):
        message = refusal(name, OUTPUT)
        assert "File name too long" in message
        assert len(message) < 200
    for name in ("a\0b", "a\nb", "\udcff", "file:///a%00b"):
        assert "does not print or is not UTF-8" in refusal(name)
    for name in ("", "  "):
        assert refusal(name) == f"{name!r} is empty; give a path."
