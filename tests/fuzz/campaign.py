"""Runs many examples of every target and writes a summary: `make fuzz`, or with options

    PYTHONPATH=tests:benchmarks python -m fuzz.campaign --examples 10000 --seed 1 --out FOLDER

The folder gets fuzz.md, and a file for each fault with its shortest input. When a fault is repaired, this file belongs
into tests/fuzz/past/, whose inputs run with every `make test`.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import UserError

from common.machine import describe_machine, git_revision
from common.output import make_folder, write_whole
from fuzz.server import ROOT
from fuzz.targets import EXAMPLES

TESTS = sorted(path for path in Path(__file__).parent.glob("test_*.py") if "\n@target(" in path.read_text())
"""The files that have a target; the others test past inputs and the fuzzer itself."""
FAULTS = ("traceback", "hang", "status")
"""Faults that have a column of their own; the others are broken invariants."""


@dataclass(frozen=True)
class FuzzConfig:
    """How many examples to run."""

    examples: Annotated[int, Interval(ge=1, le=10**9)] = 10_000
    """Examples in all, shared out among the targets and processes."""
    minutes: Annotated[float, Interval(ge=0.1, le=1e6)] | None = None
    """Ends earlier, after about this time; each target gets its share of it."""
    processes: Annotated[int, Interval(ge=1, le=1024)] = 2
    """Processes that run examples side by side."""
    seed: Annotated[int, Interval(ge=0, le=2**31)] = 0
    """Other seeds draw other examples."""
    out: str = ""
    """Folder for the summary and the inputs that failed."""


def run_campaign(config: FuzzConfig) -> int:
    """Runs the examples and writes the summary; returns the number of examples that failed."""
    if not config.out:
        raise UserError("--out is missing; name the folder for the summary, as in --out DIR.")
    folder, start = make_folder(config.out), time.monotonic()
    records = folder / "records"
    records.mkdir(exist_ok=True)
    run_examples(config, records.resolve())
    examples = [json.loads(line) for file in sorted(records.glob("*.jsonl")) for line in file.read_text().splitlines()]
    for file in records.glob("*.jsonl"):
        file.unlink()
    records.rmdir()
    write_report(folder, config, examples, seconds=time.monotonic() - start)
    return sum(bool(example["problems"]) for example in examples)


def run_examples(config: FuzzConfig, records: Path) -> None:
    """Runs the targets in so many processes at once, each with a seed of its own, which write into `records`."""
    environment = {
        **os.environ,
        "FUZZ_OUT": str(records),
        "FUZZ_EXAMPLES": str(-(-config.examples // config.processes)),
        **({} if config.minutes is None else {"FUZZ_SECONDS": str(60 * config.minutes)}),
    }
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, TESTS)]
    running = [
        subprocess.Popen(
            [*pytest, f"--hypothesis-seed={config.seed * config.processes + i}"], env=environment, cwd=ROOT
        )
        for i in range(config.processes)
    ]
    failed = [process.wait() for process in running]
    if any(failed):
        raise UserError(f"pytest ended with the statuses {failed}; its output above has the reason.")


def write_report(folder: Path, config: FuzzConfig, examples: list[dict[str, Any]], *, seconds: float) -> None:
    """Writes fuzz.md, and a file for each fault."""
    write_whole(folder / "fuzz.md", summary(config, examples, seconds))
    for i, (_, example) in enumerate(faults(examples)):
        write_whole(folder / f"fault-{i:03}.json", json.dumps(example["case"], indent=1) + "\n")


def faults(examples: Iterable[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each different fault, with the example of the shortest input; those that occur most come first."""
    by_fault = defaultdict(list)
    for example in examples:
        for problem in example["problems"]:
            by_fault[problem].append(example)
    order = sorted(by_fault.items(), key=lambda item: -len(item[1]))
    return [(fault, min(of_it, key=lambda example: len(json.dumps(example["case"])))) for fault, of_it in order]


def summary(config: FuzzConfig, examples: list[dict[str, Any]], seconds: float) -> str:
    """The report as Markdown."""
    minutes = "" if config.minutes is None else f" --minutes {config.minutes:g}"
    command = f"python -m fuzz.campaign --examples {config.examples}{minutes} --seed {config.seed} --out {config.out}"
    head = {"command": command, **describe_machine(), "revision": git_revision(), "took": f"{seconds / 60:.0f} minutes"}
    lines = ["# Fuzzing", "", *(f"- {name}: {value}" for name, value in head.items()), ""]
    rows = [_row(name, [e for e in examples if e["target"] == name]) for name in EXAMPLES]
    rows.append(_row("all", examples))
    headers = [
        "target",
        "examples",
        "accepted",
        "refused",
        *(f"{name}s" for name in ("traceback", "hang")),
        "other statuses",
    ]
    lines.append(
        tabulate(rows, [*headers, "broken invariants", "median s", "longest s"], tablefmt="github", floatfmt=".2f")
    )
    lines += [
        "",
        "Exit statuses: " + ", ".join(f"{s}: {n}" for s, n in sorted(Counter(e["status"] for e in examples).items())),
    ]
    slowest = max(examples, key=lambda example: example["seconds"])["case"]
    lines += ["", f"The slowest example: {slowest['command']} {shlex.join(slowest['args'])[:500]}"]
    for i, (fault, example) in enumerate(faults(examples)):
        lines += ["", f"## Fault {i:03}", "", fault, "", "```", example["output"].strip()[-1500:], "```"]
    return "\n".join(lines) + "\n"


def _row(name: str, examples: list[dict[str, Any]]) -> list[Any]:
    kinds = [{problem.partition(":")[0].partition(" ")[0] for problem in example["problems"]} for example in examples]
    statuses, seconds = Counter(e["status"] for e in examples), [e["seconds"] for e in examples] or [0.0]
    broken = sum(bool(kind - set(FAULTS)) for kind in kinds)
    counts = [sum(fault in kind for kind in kinds) for fault in FAULTS]
    return [name, len(examples), statuses[0], statuses[2], *counts, broken, statistics.median(seconds), max(seconds)]


def main() -> None:
    """The command; ends with status 1 if an example failed."""

    def run() -> None:
        failed = run_campaign(parse_arguments(FuzzConfig(), description=__doc__ or ""))
        print(f"{failed} examples failed")
        sys.exit(1 if failed else 0)

    run_main(run)


if __name__ == "__main__":
    main()
