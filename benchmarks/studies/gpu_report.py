"""The report of benchmarks/gpu.sh: what ran, how long it took, what failed, and what the sections measured.

    python -m studies.gpu_report start OUT DEVICE                  # status 2 and a sentence if DEVICE, cuda, is missing
    python -m studies.gpu_report begin OUT SECTION LIMIT           # writes that the section is running
    python -m studies.gpu_report end OUT SECTION STATUS RESULTS    # adds its results; status 1 if it has not passed

The report is written anew each time, so a run that is cut off still tells what has run. OUT/sections.json has what the
calls before have left, also those of earlier runs of the script on this machine with this code.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
from tabulate import tabulate

from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.whole_file import whole_file

from common.machine import describe_machine, git_revision

REPORT, LOG, SECTIONS = "report.md", "log.txt", "sections.json"
_TIMED_OUT = (124, 137)
"""Statuses of timeout(1): the command ended at the limit, or had to be killed."""
_LOG_BYTES = 8 * 2**20
"""Longest log that is kept whole; of a longer one its first and last parts are."""
_RUNNING = "running"
_CARD = "card, driver, memory"


@dataclass(frozen=True)
class Section:
    """What is known of a section."""

    started: str
    limit: float
    """Seconds."""
    begin: float
    """time.time() at its start."""
    log_at: int
    """Where in the log its lines begin."""
    outcome: str = _RUNNING
    """running, passed, or why it has not passed."""
    seconds: float = 0.0
    details: str = ""
    """Its part of the report, as Markdown."""


@dataclass
class Results:
    """The content of OUT/sections.json."""

    head: dict[str, str]
    sections: dict[str, Section]

    @classmethod
    def read(cls, out: Path) -> "Results":
        """The results so far; raises UserError for a file that is not one of them."""
        try:
            content = json.loads((out / SECTIONS).read_text())
            return cls(content["head"], {name: Section(**values) for name, values in content["sections"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{out / SECTIONS} is damaged ({error!r}); delete it, or give another folder.") from error

    def write(self, out: Path) -> None:
        """Writes them and their report."""
        for name, text in ((SECTIONS, json.dumps(asdict(self), indent=1)), (REPORT, format_report(self))):
            with whole_file(out / name) as new:
                new.write_text(text)


def start(out: Path) -> None:
    """Writes the head of the report; forgets sections that other code, versions or another card have left."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be made ({error.strerror}); give another folder.") from error
    head = describe()
    earlier = Results.read(out) if (out / SECTIONS).exists() else Results({}, {})
    same = all(earlier.head.get(name) == head[name] for name in (_CARD, "versions", "revision"))
    Results(head, earlier.sections if same else {}).write(out)


def begin(out: Path, name: str, limit: float) -> None:
    """Writes that a section is running."""
    results = Results.read(out)
    log = out / LOG
    log.touch()
    with log.open("a") as file:
        file.write(f"\n=== {name}, at most {limit:g} s ===\n")
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    results.sections[name] = Section(started, limit, time.time(), log.stat().st_size)
    results.write(out)


def end(out: Path, name: str, status: int, folder: Path) -> bool:
    """Adds what a section has left in its folder to OUT, and says whether it has passed."""
    results = Results.read(out)
    section = results.sections[name]
    seconds = time.time() - section.begin
    log = _shorten(out / LOG, section.log_at)
    problem, details = _look_at(name, log, folder)
    if status in _TIMED_OUT:
        problem = f"cut off after {section.limit:g} s"
    elif status:
        problem = f"failed with status {status}" + f": {problem}" * bool(problem)
    for left, kept in (("report.parquet", f"{name}.parquet"), ("step_time.png", f"{name}.png")):
        if (folder / left).exists():
            shutil.copyfile(folder / left, out / kept)
    outcome = problem or "passed"
    results.sections[name] = replace(section, outcome=outcome, seconds=round(seconds, 1), details=details)
    results.write(out)
    print(f"{name:8} {seconds:4.0f} s  {outcome}", flush=True)
    return not problem


def _look_at(name: str, log: str, folder: Path) -> tuple[str, str]:
    """What is wrong with the results of a section, empty if nothing is, and its part of the report."""
    if name == "tests":
        return judge_tests(log)
    if not (folder / REPORT).exists():
        last = log.strip().splitlines()[-12:]
        return "it has left no report", "\n".join(["It has left no report. Its last lines:", "", *_indented(last)])
    report = (folder / REPORT).read_text()
    if name == "planner":
        advice = re.findall(r"^\*\*.*\*\*$", report, flags=re.MULTILINE)
        return "", "\n\n".join([*advice[:1], _part(report, "Calibration")])
    problem = _failed_cases(folder / "report.parquet") if name == "sweep" else ""
    # The head of a section is that of this report; its plot has the section's name here.
    body = re.split(r"\n\n", report, maxsplit=2)[-1].partition("\n## How to read this")[0]
    return problem, re.sub(r"^#", "##", body, flags=re.MULTILINE).replace("(step_time.png)", f"({name}.png)")


def judge_tests(log: str) -> tuple[str, str]:
    """What is wrong with the tests by what pytest printed for each, even if it never ended, and a summary."""
    ended = re.findall(r"(?:^|\s)(PASSED|FAILED|ERROR|SKIPPED)\s+(tests/\S+)", log)
    ended += [(outcome, test) for test, outcome in re.findall(r"(tests/\S+) (PASSED|FAILED|ERROR|SKIPPED)\b", log)]
    by_test = {test: outcome for outcome, test in ended}
    counts = {kind: list(by_test.values()).count(kind) for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    bad = [test for test, outcome in by_test.items() if outcome in ("FAILED", "ERROR")]
    text = ", ".join(f"{number} {kind.lower()}" for kind, number in counts.items() if number) or "no test ended"
    problem = f"{len(bad)} tests failed" if bad else "" if counts["PASSED"] else "no test passed"
    reasons = re.findall(r"^(?:FAILED|ERROR) (tests/.*)$", log, flags=re.MULTILINE)
    return problem, "\n".join([f"{text}.", "", *(f"- {line}" for line in reasons or bad)])


def _failed_cases(table: Path) -> str:
    """The cases of a sweep that were not measured, or learned something else than the first one."""
    rows = pq.read_table(table, columns=["name", "status", "learns"]).to_pylist()
    bad = [row["name"] for row in rows if row["status"] not in ("ok", "left out") or row["learns"] == "other"]
    return f"{len(bad)} cases failed or learned something else, such as {bad[0]}" if bad else ""


def _part(report: str, title: str) -> str:
    """What stands below a heading."""
    return report.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def format_report(results: Results) -> str:
    """The report as Markdown."""
    rows = [
        [name, _outcome(each), each.started, f"{each.seconds:.0f}", f"{each.limit:g}"]
        for name, each in results.sections.items()
    ]
    table = tabulate(rows, ["section", "outcome", "started", "seconds", "limit"], tablefmt="github")
    lines = ["# One GPU", "", *(f"- {name}: {value}" for name, value in results.head.items()), "", table, ""]
    for name, each in results.sections.items():
        lines += [f"## {name}", "", each.details or f"{LOG} has what it has printed so far.", ""]
    return "\n".join(lines)


def _outcome(section: Section) -> str:
    return "has begun; if the script has ended, it was cut off" if section.outcome == _RUNNING else section.outcome


def describe() -> dict[str, str]:
    """The card, its driver, and the machine, by the names that the report shows."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        cards = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        cards = []
    card = "; ".join(cards) or "none that nvidia-smi names"
    return {_CARD: card, **describe_machine(), "revision": git_revision() or "unknown"}


def _shorten(log: Path, start: int) -> str:
    """The log from `start` on; cuts the middle out of one that is too long for a result."""
    data = log.read_bytes()
    if len(data) > _LOG_BYTES:
        half = _LOG_BYTES // 2
        log.write_bytes(data[:half] + b"\n... cut ...\n" + data[-half:])
    return data[start:].decode(errors="replace")


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _check_gpu() -> None:
    """Raises UserError if nothing can be measured on a GPU."""
    # Imported late, as that takes seconds.
    import torch

    from stem_torchrec.runtime.versions import fbgemm_has_cuda

    if not torch.cuda.is_available():
        raise UserError("torch sees no GPU; DEVICE=cpu makes a dry run on CPU.")
    if not fbgemm_has_cuda():
        raise UserError("fbgemm-gpu is not installed, and fbgemm-gpu-cpu has no kernels for GPUs.")


def main() -> None:
    """Does what the command line says."""
    match sys.argv[1:]:
        case ["start", out, device]:
            if device == "cuda":
                _check_gpu()
            start(Path(out))
        case ["begin", out, name, limit]:
            begin(Path(out), name, float(limit))
        case ["end", out, name, status, folder]:
            if not end(Path(out), name, int(status), Path(folder)):
                sys.exit(1)
        case arguments:
            raise AssertionError(f"benchmarks/gpu.sh calls it otherwise than {arguments}")


if __name__ == "__main__":
    run_main(main)
