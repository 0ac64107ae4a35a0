"""What every answer must satisfy: an exit status of the table, a sentence instead of a traceback, and right results."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stem_torchrec.config.files import dump_config
from stem_torchrec.runtime.exit_status import ExitStatus
from stem_torchrec.training.configuration import load_config

from fuzz.case import Case
from fuzz.server import Answer

UNDEFINED = {"auc", "gauc", "ne", "pcoc"}
"""Metrics that have no value for rows of one class, or without a group; they are null."""
FEW = 16
"""Rows of a class below which a high AUC of random labels may be chance."""


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
    elif answer.status == ExitStatus.OK and case.command == "train" and not {"--help", "-h"} & set(case.args):
        yield from _trained(case, answer, folder)


def _sentence(output: str) -> Iterator[str]:
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        yield f"no sentence: status 2 with {len(lines)} lines that begin with 'error:': {output.strip()[-200:]}"


def _last_frames(output: str) -> str:
    """The error of the last traceback, and the places of this repository that it came through last."""
    places = re.findall(
        r'File "[^"]*/((?:stem_torchrec|benchmarks|datasets|tests)/[\w/]+\.py)", line \d+, in (\w+)', output
    )
    error = next(
        (line for line in reversed(output.splitlines()) if re.match(r"[\w.]*(Error|Exception|Interrupt)", line)), ""
    )
    return f"{error[:160]} in {' > '.join(f'{file}:{name}' for file, name in places[-2:])}"


def _trained(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    runs = (
        [folder / (case.option("--output-dir") or "")] if case.option("--output-dir") else sorted(folder.glob("runs/*"))
    )
    run = runs[-1]
    metrics = json.loads((run / "metrics.json").read_text(), parse_constant=lambda name: _NotFinite)["valid"]
    for task, values in metrics.items():
        for name, value in values.items():
            # Of no rows, as where all have been skipped, no metric is defined.
            if value is _NotFinite or (value is None and name not in UNDEFINED and values["rows"]):
                yield f"metric: {name} of a task is not finite"
            elif value is not None and not math.isfinite(value):
                yield f"metric: {name} of a task is {value}"
        yield from _matches_files(case, task, values, folder)
    edited = {edit.get(key, "") for edit in case.edits for key in ("path", "to")}
    if case.option("--output-dir") == "paused" and not any(path.startswith(("log", "run/")) for path in edited):
        whole = json.loads((folder / "run/metrics.json").read_text())["valid"]
        if metrics != whole:
            yield "resume: the metrics differ from those of the uninterrupted run"
    text = (run / "config.yaml").read_text()
    if dump_config(load_config(str(run / "config.yaml"))) != text:
        yield "config.yaml: reloads as another configuration"
    if (printed := re.search(r"([\d,]+) training rows", answer.output)) and _own_log(case):
        rows, read = len(list(_rows(folder / "log/train", "finish"))), int(printed[1].replace(",", ""))
        if rows != read:
            yield f"rows: {read} of the training rows are read, the files have {rows}"


_NotFinite = object()


def _own_log(case: Case) -> bool:
    return case.option("--data.path") == "log" and "skip" not in case.args


def _matches_files(case: Case, task: str, values: dict[str, Any], folder: Path) -> Iterator[str]:
    if not _own_log(case):
        return
    labels = [label for label in _rows(folder / "log/valid", task) if label is not None]
    if values["rows"] != len(labels):
        yield f"rows: metrics of {values['rows']} validation rows, the files have {len(labels)}"
    positives = values["positives"]
    if min(positives, values["rows"] - positives) >= FEW and (values["auc"] or 0) > 0.999:
        yield "auc: random labels are predicted"


def _rows(folder: Path, column: str) -> Iterator[Any]:
    """The values of a column in all files below a folder but those that Spark or macOS hide."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix.lower() == ".parquet" and not hidden:
            with pq.ParquetFile(path) as file:
                yield from (
                    file.read([column])[column].to_pylist()
                    if column in file.schema_arrow.names
                    else [None] * file.metadata.num_rows
                )
