"""What every answer must satisfy: an exit status of the table, a sentence instead of a traceback, and right results."""

import re
from collections.abc import Iterator
from pathlib import Path

from stem_torchrec.runtime.exit_status import ExitStatus

from fuzz.case import Case
from fuzz.results import RESULTS
from fuzz.server import Answer


def problems(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """What is wrong with an answer, in words that are the same for the same fault."""
    if answer.hung:
        yield f"hang: {case.command} did not end in time"
        return
    if "Traceback (most recent call last)" in answer.output:
        yield f"traceback: {_last_frames(answer.output)}"
    elif answer.status not in set(ExitStatus):
        yield f"status {answer.status}: {answer.output.strip()[-200:]}"
    elif answer.status == ExitStatus.INPUT and case.env.get("LOCAL_RANK", "0") == "0":
        yield from _sentence(answer.output)
    elif answer.status == ExitStatus.OK and case.command in RESULTS and not {"--help", "-h"} & set(case.args):
        yield from RESULTS[case.command](case, answer, folder)


def _sentence(output: str) -> Iterator[str]:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        yield f"no sentence: status 2 with {len(lines)} lines that begin with 'error:': {output.strip()[-200:]}"
    elif not re.search(r" \[STEM-[A-Z]+\]$", lines[0]):
        yield f"no kind: {lines[0][-200:]}"


def _last_frames(output: str) -> str:
    """The error of the last traceback, and the places of this repository that it came through last."""
    places = re.findall(
        r'File "[^"]*/((?:stem_torchrec|benchmarks|datasets|tests)/[\w/]+\.py)", line \d+, in (\w+)', output
    )
    error = next(
        (line for line in reversed(output.splitlines()) if re.match(r"[\w.]*(Error|Exception|Interrupt)", line)), ""
    )
    return f"{error[:160]} in {' > '.join(f'{file}:{name}' for file, name in places[-2:])}"
