"""The pages: their blocks of commands and of Python run, as do the programs in examples/.

`<!-- test: ... -->` on the line above a block tells how to run it:

    skip, REASON         not at all
    long; OLD => NEW     only in the long tier; with NEW in the place of OLD, to make it smaller; more may follow

The blocks of a page run one after another in one folder that looks like a clone of the repository. `RUN` is a run in it
that two ranks trained, `DIR` has a small KuaiRand-Pure as its CSV files, and `adult.data` is in the format of Adult.
"""

import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from sybil import Document
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, FencedCodeBlockLexer

from kuairand_files import LOG, LOG_FILE, exposure, write_csv, write_raw
from raw_logs import adult

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CLONED = ("stem_torchrec", "benchmarks", "datasets", "examples", "launch", ".torchxconfig")
TRAIN_RUN = (
    "torchrun --nproc-per-node 2 stem_torchrec/train.py --recipe tiny --sparse.name adagrad --train.max-steps 4 "
    "--output-dir RUN"
)


@dataclass(frozen=True)
class Block:
    """A block of code on a page, as the test runs it."""

    page: Path
    line: int
    language: str
    source: str
    long: bool
    skip: str


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that are commands or Python, in order."""
    document = Document(page.read_text(), str(page))
    directives = {
        document.text.count("\n", 0, region.end): region.lexemes["arguments"]
        for region in DirectiveInHTMLCommentLexer("test")(document)
    }
    blocks = []
    for region in FencedCodeBlockLexer("python|bash")(document):
        above = document.text.count("\n", 0, region.start)
        source, long, skip = str(region.lexemes["source"]), False, ""
        directive = directives.pop(above - 1, "")
        if directive.startswith("skip, "):
            directive, skip = "", directive.removeprefix("skip, ")
        for part in filter(None, map(str.strip, directive.split(";"))):
            if part == "long":
                long = True
                continue
            old, arrow, new = map(str.strip, part.partition("=>"))
            assert arrow, f"{page}:{above}: {part!r} is not OLD => NEW"
            assert old in source, f"{page}:{above}: the block has no {old!r}"
            source = source.replace(old, new)
        blocks.append(Block(page, above + 1, str(region.lexemes["language"]), source, long, skip))
    assert not directives, f"{page}: no block follows the comment on line {min(directives) + 1}"
    return blocks


def parameters(language: str) -> list:
    """The blocks in a language on all pages, with their tier, as parameters of a test."""
    found = []
    for block in (block for page in PAGES for block in blocks_of(page) if block.language == language):
        marks = [pytest.mark.long] if block.long else []
        if language == "python" and block.page.name == "README.md":
            marks.append(pytest.mark.quick)
        if block.skip:
            marks.append(pytest.mark.skip(reason=block.skip))
        found.append(pytest.param(block, marks=marks, id=f"{block.page.relative_to(ROOT)}:{block.line}"))
    return found


def clone(folder: Path) -> Path:
    """A folder from which the commands of a page run, and into which they write."""
    for name in CLONED:
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    (folder / ".venv").symlink_to(sys.prefix)  # The environment of this Python, whatever its stack.
    write_raw(folder / "DIR")
    rows = [
        # Labels of both kinds for each task on each day.
        exposure(
            user,
            video,
            day,
            duration_ms=900 * video,
            long_view=(user + video) % 2,
            is_like=int((user + video + day) % 3 == 0),
        )
        for day in range(1, 7)
        for user in (1, 2, 3)
        for video in (10, 11, 12)
    ]
    write_csv(folder / "DIR" / LOG_FILE, LOG, rows)
    adult.write_adult(folder, 1000)
    return folder


def run_commands(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands of the shell with the scripts of this Python; the first one that fails ends them."""
    # torchrun's own port would be that of another test as well.
    commands = commands.replace("torchrun --nproc-per-node", "torchrun --standalone --nproc-per-node")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1200,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """The folder of each page whose blocks have run."""
    return {}


@pytest.mark.parametrize("block", parameters("bash"))
def test_a_block_of_commands_runs(
    block: Block, folders: dict[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if block.page not in folders:
        folders[block.page] = clone(tmp_path_factory.mktemp(block.page.stem))
    folder = folders[block.page]
    if re.search(r"\bRUN\b", block.source) and not (folder / "RUN").exists():
        assert run_commands(TRAIN_RUN, folder).returncode == 0
    result = run_commands(block.source, folder)
    assert result.returncode == 0, result.stdout


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A program runs in a folder of its own, and leaves no process group, variable or number of threads behind."""
    monkeypatch.chdir(tmp_path)
    environment, threads = dict(os.environ), torch.get_num_threads()
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)


def promises(source: str) -> list[str]:
    """What the comments behind its prints say that a program prints."""
    return re.findall(r"^ *print\(.*\)  # (.+)$", source, re.MULTILINE)


def broken_promises(source: str, printed: str) -> list[str]:
    """The promises that no printed line keeps, in order; behind a colon a promise may explain itself."""
    lines = iter(printed.splitlines())
    return [
        text for text in promises(source) if not any(text == line or text.startswith(f"{line}: ") for line in lines)
    ]


@pytest.mark.parametrize("block", parameters("python"))
@pytest.mark.usefixtures("alone")
def test_a_block_of_python_prints_what_its_comments_say(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block.source, f"{block.page}:{block.line}", "exec"), {"__name__": "__main__"})
    assert broken_promises(block.source, capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.quick] if path.name == "step.py" else []) for path in EXAMPLES],
    ids=lambda path: path.name,
)
@pytest.mark.usefixtures("alone")
def test_an_example_prints_what_its_comments_say(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(path), run_name="__main__")
    assert broken_promises(path.read_text(), capsys.readouterr().out) == []


@pytest.mark.long
@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if "torchrun" in path.read_text()], ids=lambda path: path.name
)
def test_an_example_runs_on_two_ranks(path: Path, tmp_path: Path) -> None:
    result = run_commands(f"torchrun --nproc-per-node 2 {path}", tmp_path)
    assert result.returncode == 0, result.stdout


def test_a_promise_is_kept_by_the_line_that_it_names() -> None:
    source = "x = 3  # 4\nprint(x)  # 3: three\nif x:\n    print([x])  # [3]\nprint(x)\n"
    assert promises(source) == ["3: three", "[3]"]
    assert broken_promises(source, "a log line\n3\n[3]\n3\n") == []
    assert broken_promises(source, "[3]\n3\n") == ["[3]"]
