"""How a command ends: the table of docs/errors.md, and the status and sentence of each kind of error."""

import errno
import os
import re
from pathlib import Path

import pytest

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import Interrupted, LostRankError, UnwritableError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus

PAGE = Path(__file__).parent.parent / "docs/errors.md"


def test_the_page_lists_every_exit_status() -> None:
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)]
    assert listed == [status.value for status in ExitStatus]
    assert "| 128 + n |" in PAGE.read_text()


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("--x is 0, but must be 1."), ExitStatus.INPUT, "--x is 0, but must be 1."),
        (LostRankError("rank 1 is lost."), ExitStatus.LOST_RANK, "rank 1 is lost."),
        (UnwritableError("f cannot be written."), ExitStatus.UNWRITABLE, "f cannot be written."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x/y"), ExitStatus.UNWRITABLE, "/x/y cannot be read or"),
        (OSError("the store answers 503"), ExitStatus.UNWRITABLE, "the store answers 503"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/y"), ExitStatus.INPUT, "/x/y cannot be used"),
    ],
)
def test_an_error_becomes_one_sentence_and_its_status(
    error: Exception, status: ExitStatus, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {sentence}") or sentence in printed
    assert printed.count("\n") == 1


def test_an_interrupted_run_asks_to_be_resumed() -> None:
    def main() -> None:
        raise Interrupted

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == ExitStatus.RESUME
