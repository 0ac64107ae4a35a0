"""How a command ends: the table of docs/errors.md, and the status and sentence of each kind of error and signal."""

import ast
import errno
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.error_kinds import OF_ROOMS, ErrorKind, kind_of_module
from stem_torchrec.runtime.errors import DataError, Interrupted, LaunchError, LostRankError, UnwritableError, UserError
from stem_torchrec.runtime.exit_status import ExitStatus, killed_by
from stem_torchrec.runtime.path_options import PathOption, checked_path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/errors.md"


def test_the_page_lists_every_exit_status() -> None:
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)]
    assert listed == [status.value for status in ExitStatus]
    assert "| 128 + n |" in PAGE.read_text()


def test_the_page_lists_every_kind_of_error() -> None:
    listed = re.findall(r"^\| `(STEM-[A-Z]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert listed == sorted(kind.value for kind in ErrorKind)


FILLED_IN = ("FILE", "metrics.jsonl", "metrics.json", "s3fs", "No space left on device")
"""What the sentences of the page have in place of `...`, so that readers find them."""


def test_every_sentence_of_the_page_is_one_of_the_code() -> None:
    section = PAGE.read_text().partition("## Errors and their fixes")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    sentences = [sentence for row in rows for sentence in re.findall("`([^`]+)`", row.split(" | ")[0])]
    left_open = "|".join(map(re.escape, ("...", *FILLED_IN)))
    parts = [part.strip(" :") for sentence in sentences for part in re.split(left_open, sentence)]
    assert len(parts) > len(sentences) > 30
    code = "\n".join(path.read_text() for path in (ROOT / "stem_torchrec").rglob("*.py"))
    # A sentence of several lines is one text.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert [part for part in parts if not is_made_of(part, code)] == []


def is_made_of(part: str, code: str) -> bool:
    """Whether the code has a part of a sentence, in one text or in two that it puts together."""
    words = part.split(" ")
    return any(" ".join(words[:i]) in code and " ".join(words[i:]) in code for i in range(len(words)))


def test_every_room_gives_its_errors_a_kind() -> None:
    package = ROOT / "stem_torchrec"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    # Those of runtime/ are of many kinds, so its modules are listed one by one.
    assert rooms - OF_ROOMS.keys() == {"runtime"}
    raising = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in package.rglob("*.py")
        if "UserError(" in path.read_text() and path.name != "errors.py"
    ]
    assert len(raising) > 100
    # A command leaves errors to the rooms that it calls: as a script it has the name __main__, and so no kind.
    assert [module for module in raising if module.count(".") == 1] == []
    assert [module for module in raising if kind_of_module(module) == ErrorKind.INPUT] == []
    # A room that is gone has no kind, and a kind that no room gives is of a class or of command.py.
    assert [room for room in OF_ROOMS if not list(package.glob(f"{room.replace('.', '/')}*"))] == []
    others = {kind for kind in ErrorKind if kind not in OF_ROOMS.values()}
    raised = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "error_kinds.py")
    assert [kind for kind in others - {ErrorKind.INPUT} if f"ErrorKind.{kind.name}" not in raised] == []


def test_an_error_keeps_its_kind_on_its_way_to_other_ranks() -> None:
    with pytest.raises(UserError) as raised:
        checked_path(" ", PathOption("file"))
    for error in (raised.value, pickle.loads(pickle.dumps(raised.value))):
        assert error.kind == ErrorKind.PATH
    assert pickle.loads(pickle.dumps(DataError("row 3"))).kind == ErrorKind.ROW
    assert UserError("of a script").kind == ErrorKind.INPUT


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("--x is 0, but must be 1."), ExitStatus.INPUT, "--x is 0, but must be 1. [STEM-INPUT]\n"),
        (LostRankError("rank 1 is lost."), ExitStatus.LOST_RANK, "rank 1 is lost. [STEM-RANK]\n"),
        (UnwritableError("f cannot be written."), ExitStatus.UNWRITABLE, "f cannot be written. [STEM-WRITE]\n"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), ExitStatus.UNWRITABLE, "/x/y cannot be read or written (No"),
        (OSError("the store\nanswers 503"), ExitStatus.UNWRITABLE, "a file cannot be read or written (answers 503)"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/y"), ExitStatus.INPUT, "/x/y cannot be used (No such"),
        (
            MemoryError("Unable to allocate 8 PiB\nfor"),
            ExitStatus.INPUT,
            "the memory does not suffice (Unable to",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate"), ExitStatus.INPUT, "the memory does not suffice (Default"),
        (RuntimeError("CUDA error: out of memory"), ExitStatus.INPUT, "the memory does not suffice (CUDA error"),
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
    assert printed.startswith(f"error: {sentence}")
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (OSError(errno.ENOSPC, "No space left"), ExitStatus.UNWRITABLE),
        (UnwritableError("f cannot be written"), ExitStatus.UNWRITABLE),
        (PermissionError(errno.EACCES, "Permission denied"), ExitStatus.INPUT),
        (OSError("Corrupt snappy compressed data."), ExitStatus.INPUT),
        (ValueError("not JSON"), ExitStatus.INPUT),
    ],
)
def test_a_sentence_about_a_full_disk_has_its_status(
    cause: Exception, status: ExitStatus, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise UserError("the folder cannot be written; give another.") from cause

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == status
    kind = "STEM-WRITE" if status == ExitStatus.UNWRITABLE else "STEM-INPUT"
    assert capsys.readouterr().err == f"error: the folder cannot be written; give another. [{kind}]\n"


def test_an_interrupted_run_asks_to_be_resumed() -> None:
    def main() -> None:
        raise Interrupted

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == ExitStatus.RESUME


def command(body: str, *flags: str) -> list[str]:
    """A command line whose `main` has this body."""
    indented = body.replace("\n", "\n    ")
    code = f"import sys, time\nfrom stem_torchrec.runtime.command import run_main\ndef main():\n    {indented}"
    return [sys.executable, *flags, "-c", f"{code}\nrun_main(main)"]


WAITS = "try:\n    print('begun', flush=True)\n    time.sleep(60)\nfinally:\n    print('cleaned', flush=True)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("cleaning", ["", "    raise RuntimeError('cannot clean')"])
def test_a_signal_ends_a_command_with_one_line_after_it_has_cleaned_up(number: signal.Signals, cleaning: str) -> None:
    with subprocess.Popen(
        command(WAITS + cleaning), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        output, error = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert output == "cleaned\n"
    assert error == f"error: stopped by {number.name} before it was complete.\n"


SAVES = """from stem_torchrec.runtime.errors import Interrupted
from stem_torchrec.runtime.signals import ending_on_signals
with ending_on_signals() as ending:
    print('begun', flush=True)
    ending.wait()
    time.sleep(SECONDS)
raise Interrupted('a checkpoint is written')
"""
CLEANS = """try:
    print('begun', flush=True)
    time.sleep(60)
finally:
    time.sleep(SECONDS)
    print('cleaned', flush=True)
"""


def ended_by_two(number: signal.Signals, body: str, *, after: float, seconds: float) -> tuple[int, str]:
    """Status and output of a command that gets a signal twice, and takes some seconds to clean up."""
    with subprocess.Popen(
        command(body.replace("SECONDS", str(seconds))), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        time.sleep(after)
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    return process.returncode, output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_a_command_twice_is_one_signal(number: signal.Signals) -> None:
    # As on Slurm, which sends it to the ranks and to the launcher, which hands it on.
    assert ended_by_two(number, SAVES, after=0.01, seconds=0.3) == (ExitStatus.RESUME, "")
    assert ended_by_two(number, CLEANS, after=0.01, seconds=0.3) == (128 + number, "cleaned\n")


@pytest.mark.parametrize("body", [SAVES, CLEANS])
def test_a_second_ctrl_c_ends_a_command_at_once(body: str) -> None:
    assert ended_by_two(signal.SIGINT, body, after=1.2, seconds=15) == (128 + signal.SIGINT, "")


def test_a_signal_ends_a_command_with_a_thread_that_nobody_ends() -> None:
    body = f"import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\n{WAITS}"
    with subprocess.Popen(command(body), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    # As under nohup.
    line = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command(WAITS)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


PRINTS = "for i in range(100_000):\n    print('line', i)\nprint('complete', file=sys.stderr)"


@pytest.mark.parametrize("flags", [(), ("-u",)])
def test_a_command_whose_output_nobody_reads_continues(flags: tuple[str, ...]) -> None:
    with subprocess.Popen(
        command(PRINTS, *flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line 0\n"
        process.stdout.close()
        assert process.stderr.read() == "complete\n"
    assert process.returncode == ExitStatus.OK


@pytest.mark.parametrize(("redirection", "status"), [(">&-", 0), (">&- 2>&- <&-", 0), (">/dev/full", 74)])
def test_a_command_without_an_output_completes_its_work(redirection: str, status: int, tmp_path: Path) -> None:
    # The first file that is opened gets the lowest free descriptor, which libraries take for standard output.
    body = f"open({str(tmp_path / 'file')!r}, 'w').write('whole')\n{PRINTS}"
    line = ["sh", "-c", f'"$@" {redirection}', "sh", *command(body)]
    process = subprocess.run(line, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.returncode == status
    assert (tmp_path / "file").read_text() == "whole"
    lost = "error: standard output cannot be written (No space left on device). [STEM-WRITE]\n"
    assert process.stderr.removeprefix("complete\n") == (lost if status else "")


def test_text_that_the_terminal_cannot_show_is_escaped() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(command(r"print('\u7279 \udcff')"), env=environment, capture_output=True, check=True)
    assert process.stdout == b"\\u7279 \\udcff\n"


@pytest.mark.parametrize("error", [LaunchError, UserError])
def test_only_a_disk_or_store_that_fails_is_unwritable(error: type[UserError]) -> None:
    """A host that no one knows and a low `ulimit -n` are errors of the system as well, and the user's to change."""
    causes = {LaunchError: socket.gaierror(socket.EAI_NONAME, "not known"), UserError: OSError(errno.EMFILE, "files")}

    def main() -> None:
        raise error("it cannot start.") from causes[error]

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == ExitStatus.INPUT


def test_a_thread_of_a_library_that_a_full_disk_ends_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def main() -> None:
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()

    run_main(main)
    assert capsys.readouterr().err == "note: a thread in the background has ended (No space left on device)\n"


def test_a_signal_in_a_finalizer_is_not_lost(capsys: pytest.CaptureFixture[str]) -> None:
    class Slow:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)

    def main() -> None:
        Slow()
        time.sleep(10)

    with pytest.raises(SystemExit) as exit_:
        run_main(main)
    assert exit_.value.code == killed_by(signal.SIGTERM)
    assert capsys.readouterr().err == "error: stopped by SIGTERM before it was complete.\n"


SCRIPTS = sorted(path for room in ("stem_torchrec", "datasets", "benchmarks") for path in (ROOT / room).glob("*.py"))


def called_functions(statements: list[ast.stmt]) -> set[str]:
    """Names of the functions that the statements call directly."""
    nodes = [node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return {node.func.id for node in nodes if isinstance(node.func, ast.Name)}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_script_ends_by_the_table(path: Path) -> None:
    tree = ast.parse(path.read_text())
    functions = {node.name: node.body for node in tree.body if isinstance(node, ast.FunctionDef)}
    blocks = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
    # Those of stem_torchrec call main(), which pip installs as a command, and main calls run_main.
    for block in blocks:
        called = called_functions(block.body)
        assert "run_main" in called.union(*(called_functions(functions[name]) for name in called & functions.keys()))
    # What is beside the scripts of datasets/ and benchmarks/ without such a block is imported by them.
    is_command = path.parent.name in ("stem_torchrec", "benchmarks") and path.stem != "__init__"
    assert blocks or not is_command


@pytest.mark.parametrize("script", [None, "no_such_script.py", "launch"])
def test_the_launcher_of_scripts_refuses_what_is_no_script(script: str | None) -> None:
    line = [sys.executable, "launch/run.py", *([script, "--help"] if script else [])]
    process = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == ExitStatus.INPUT
    first = repr(script) if script else "nothing"
    sentence = f"the first argument must be a script of this repository, not {first}."
    assert process.stderr == f"error: {sentence} [{ErrorKind.LAUNCH}]\n"
