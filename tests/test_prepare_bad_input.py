"""Bad input of stem-prepare: one whole sentence, exit status 2 or 74, and nothing half-written."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from stem_torchrec.config.yaml_text import to_yaml
from stem_torchrec.expressions.functions import functions_page
from stem_torchrec.prepare import main
from stem_torchrec.runtime.errors import UserError

from bad_inputs import BAD_FILES, BAD_ROWS, BAD_SPECS, BadInput
from owners import owned_by_another_process
from preparations import CSV, SPEC, prepare, refusal, spec_with, write_files

ROOT = Path(__file__).parents[1]
ALL = [*BAD_FILES, *BAD_ROWS, *BAD_SPECS]


@pytest.mark.parametrize("bad", ALL, ids=[bad.what for bad in ALL])
def test_bad_input_is_refused_in_one_sentence_and_nothing_is_left(bad: BadInput, tmp_path: Path) -> None:
    assert refusal(tmp_path, bad.spec, bad.files, **bad.options) == bad.sentence


@pytest.mark.parametrize("bad", ALL, ids=[bad.what for bad in ALL])
def test_the_page_lists_each_bad_input_with_its_sentence(bad: BadInput) -> None:
    assert row_of(bad) in (ROOT / "docs" / "prepare.md").read_text().splitlines()


def test_the_page_of_expressions_has_all_functions() -> None:
    assert functions_page().strip().replace("###", "##") in (ROOT / "docs" / "expressions.md").read_text()


def row_of(bad: BadInput) -> str:
    """The row of the page's table."""
    return f"| {bad.what} | {bad.sentence.replace('|', chr(92) + '|').replace('*', chr(92) + '*')} |"


def command(folder: Path, *options: str, **limits: int) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder, with limits of the system."""

    def limit() -> None:
        for name, number in limits.items():
            resource.setrlimit(getattr(resource, name), (number, number))

    return subprocess.run(
        [sys.executable, str(ROOT / "stem_torchrec" / "prepare.py"), *options],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_files(tmp_path, {"log.csv": CSV, "spec.yaml": to_yaml(SPEC), "a file": ""})
    return tmp_path


@pytest.mark.parametrize("option", ["--threads=x", "--threads=1.5", "--memory=x", "--engine=x", "--treads=1"])
def test_an_option_of_another_type_is_refused_in_one_sentence(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["stem-prepare", "spec.yaml", "--out", "made", option])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert option.partition("=")[0] in error
    assert error.count("\n") == 1


def test_the_command_ends_with_status_2_and_one_line(folder: Path) -> None:
    (folder / "log.csv").write_text(CSV.replace("3,2,1", "3,2,2"))
    answer = command(folder, "spec.yaml", "--out", "made")
    sentence = "labels[click] is 2 in 1 row, first in log.csv, line 8, but must be 0, 1 or missing."
    assert (answer.returncode, answer.stderr) == (2, f"error: {sentence} [STEM-RAW]\n")
    assert sorted(path.name for path in folder.iterdir()) == ["a file", "log.csv", "spec.yaml"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("a file", "is not a folder"),
        ("a file/log", "cannot be used (Not a directory)"),
        (".", "is the folder that you are in"),
        ("/proc/log", "is in a folder of the system"),
        ("s3://bucket/log", "is not a local folder"),
        ("x" * 300, "cannot be used (File name too long)"),
    ],
)
def test_a_bad_place_for_the_log_is_refused(out: str, words: str, folder: Path) -> None:
    answer = command(folder, "spec.yaml", "--out", out)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a file", "log.csv", "spec.yaml"]


def test_a_full_disk_ends_with_status_74_and_the_work_goes_on_later(folder: Path) -> None:
    answer = command(folder, "spec.yaml", "--out", "made", RLIMIT_FSIZE=1_000)
    assert answer.returncode == 74, answer.stderr
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert not (folder / "made").exists()
    assert command(folder, "spec.yaml", "--out", "made").returncode == 0
    assert (folder / "made" / "schema.json").exists()


def test_a_log_that_another_process_makes_is_refused(tmp_path: Path) -> None:
    new = tmp_path / ".made.new"
    owned_by_another_process(new)
    with pytest.raises(UserError, match=f"^{re.escape(str(new))} is in use by process {os.getppid()} on "):
        prepare(tmp_path, out=str(tmp_path / "made"))
    assert [path.name for path in new.iterdir()] == [".owner.json"]


def test_rows_of_a_side_table_without_a_key_multiply_nothing(tmp_path: Path) -> None:
    sources = {"log": SPEC["sources"]["log"], "users": {"files": "users.csv", "columns": {"user": "int"}}}
    spec = spec_with(sources=sources, joins=[{"source": "users", "on": "user"}], features={"city": {}})
    users = "user,city\n1,a\n2,b\n3,b\n4,a\n,c\n,d\n"
    assert (prepare(tmp_path, spec, {"log.csv": CSV, "users.csv": users}) / "train").exists()
