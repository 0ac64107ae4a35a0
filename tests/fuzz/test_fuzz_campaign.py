"""A campaign runs every target, and its report counts them."""

from pathlib import Path
from typing import Any

import pytest

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.errors import UserError

from fuzz.campaign import TESTS, FuzzConfig, run_campaign, write_report
from fuzz.case import Case
from fuzz.targets import EXAMPLES


def example(target: str, status: int, *problems: str, args: tuple[str, ...] = ()) -> dict[str, Any]:
    """The record of an example."""
    case = {"command": "train", "args": list(args)}
    return {"target": target, "status": status, "seconds": 0.5, "problems": problems, "case": case, "output": "why"}


def counts(report: Path) -> dict[str, list[str]]:
    """The cells of each line of the table, by target."""
    lines = [line.strip("| ").split("|") for line in report.read_text().splitlines() if line.startswith("|")]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in lines}


def test_the_report_counts_examples_and_faults_by_target(tmp_path: Path) -> None:
    records = [
        example("logs", 0),
        example("logs", 2),
        example("logs", 0, "rows: 1 read, the files have 2", args=("--a", "--longer")),
        example("logs", 0, "rows: 1 read, the files have 2", args=("--a",)),
        example("environments", 1, "traceback: KeyError in train.py"),
        example("environments", -9, "hang: train did not end in time"),
        example("environments", 1, "status 1: no"),
    ]
    write_report(tmp_path, FuzzConfig(minutes=3, out="x"), records, seconds=60.0)
    table = counts(tmp_path / "fuzz.md")
    # Examples, accepted, refused, tracebacks, hangs, other statuses, broken invariants.
    assert table["logs"][:7] == ["4", "3", "1", "0", "0", "0", "2"]
    assert table["environments"][:7] == ["3", "0", "0", "1", "1", "1", "0"]
    assert table["structured files"][:1] == ["0"]
    assert table["all"][:7] == ["7", "3", "1", "1", "1", "1", "2"]
    assert "--minutes 3 " in (tmp_path / "fuzz.md").read_text()
    # The most frequent fault comes first, with its shortest input, which belongs into past/ as it is.
    assert Case.read(tmp_path / "fault-000.json") == Case("train", ["--a"])
    assert len(list(tmp_path.glob("fault-*.json"))) == 4


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_minutes_that_are_no_positive_number_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="minutes"):
        parse_arguments(FuzzConfig(), ["--minutes", value])


def test_a_campaign_without_a_folder_is_refused() -> None:
    with pytest.raises(UserError, match="--out is missing"):
        run_campaign(FuzzConfig())


def test_a_campaign_runs_the_files_that_have_targets() -> None:
    text = "".join(path.read_text() for path in TESTS)
    assert all(f'@target("{name}")' in text for name in EXAMPLES)
    assert not {Path(__file__), Path(__file__).with_name("test_fuzz_past.py")} & set(TESTS)


@pytest.mark.long
def test_a_campaign_of_one_example_a_target_writes_its_report(tmp_path: Path) -> None:
    config = FuzzConfig(examples=1, processes=1, out=str(tmp_path / "out"))
    assert run_campaign(config) == 0
    table = counts(tmp_path / "out/fuzz.md")
    assert {name: table[name][0] for name in EXAMPLES} == dict.fromkeys(EXAMPLES, "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == ["fuzz.md"]
