"""Inputs that once had a wrong answer, each a file of past/, and what the fuzzer itself must notice."""

from pathlib import Path

import pytest

from fuzz.case import Case, train
from fuzz.invariants import problems
from fuzz.server import Answer
from fuzz.targets import bench

PAST = sorted((Path(__file__).parent / "past").glob("*.json"))


@pytest.mark.parametrize("path", PAST, ids=[path.stem for path in PAST])
def test_an_input_that_once_failed_has_a_right_answer(path: Path) -> None:
    answer, wrong = bench().run(Case.read(path))
    assert not wrong, answer.output


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(-9, "", 60.0, hung=True), "hang"),
        (Answer(1, "Traceback (most recent call last):\nKeyError: 'x'\n", 1.0), "traceback: KeyError"),
        (Answer(1, "no", 1.0), "status 1"),
        (Answer(-11, "", 1.0), "status -11"),
        (Answer(2, "usage", 1.0), "no sentence"),
    ],
)
def test_a_wrong_answer_is_noticed(answer: Answer, problem: str, tmp_path: Path) -> None:
    assert [text for text in problems(train(), answer, tmp_path) if text.startswith(problem)]


def test_a_file_changed_outside_of_the_output_is_noticed() -> None:
    # "leave" trains into run/ and paused/, which are no outputs of the command.
    edits = [{"do": "delete", "path": "run"}, {"do": "delete", "path": "paused"}]
    answer, wrong = bench().run(Case("resume", ["leave", "1", *train().args], edits))
    assert answer.status == 0
    assert "changed: run/metrics.json, which is not the command's" in wrong
