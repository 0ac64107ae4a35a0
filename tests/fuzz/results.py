"""What a command that ended well must have written: metrics that are numbers, of all rows, and files that reload."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from stem_torchrec.calibration.calibration_file import read_calibration
from stem_torchrec.checkpoints.checksum import weights_checksum
from stem_torchrec.checkpoints.weights import find_weights
from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.deltas.copied_run import applied_to_copy
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.serving.manifest import MANIFEST_FILE, read_manifest
from stem_torchrec.serving.patch_bundle import applied_to_bundle
from stem_torchrec.training.configuration import load_config

from fuzz.case import Case
from fuzz.server import Answer
from recovery.train_runs import tensors_of

LAST_DELTA = 2
"""The number of the last delta of run/, which has the weights of best/."""
FEW = 16
"""Rows of a class below which a high AUC of random labels may be chance."""

Metrics = Mapping[str, Mapping[str, Any]]
"""Values by task and metric, as in metrics.json."""


def trained(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of train: the run folder, the rows of its steps, and for paused/ the same metrics as run/."""
    if "dry run: " in answer.output:
        return
    place = case.place("--output-dir")
    run = folder / place if place else sorted(folder.glob("runs/*"))[-1]
    name, before = str(run.relative_to(folder)), "has ended already" in answer.output
    if not (before and _is_edited(case, f"{name}/metrics.json")):
        yield from wrong_run(run, folder)
    if not before and not _is_edited(case, f"{name}/metrics.jsonl"):
        resumed = re.search(r"resuming after step (\d+)", answer.output)
        yield from _wrong_steps(run, folder, int(resumed[1]) if resumed else 0)
    if name == "paused" and not any(_is_edited(case, path) for path in ("log", "run")):
        whole = folder / "run"
        same = what_is_trained(_config(run)) == what_is_trained(_config(whole))
        if same and _read(run / "metrics.json")["valid"] != _read(whole / "metrics.json")["valid"]:
            yield "resume: the metrics differ from those of the uninterrupted run"


def evaluated(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of evaluate: the metrics of --json, and the rows of --predictions."""
    split = case.option("--split") or "valid"
    # The runs are trained on log/, too.
    rows = folder / (case.place("--data.path") or "log") / split
    if place := case.place("--json"):
        yield from wrong_metrics(_read(folder / place)[split], rows)
    if place := case.place("--predictions"):
        yield from _unequal(f"rows of predictions of the {split} split", _count(folder / place), _count(rows))


def calibrated(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of calibrate: curves of the weights of the run, judged on all rows of the test part."""
    run = folder / (case.place("--run") or case.place("--run-dir") or "")
    weights = weights_checksum(find_weights(run / "best"))
    calibration = read_calibration(folder / (case.place("--out") or ""), weights=weights)
    rows = folder / (case.place("--data.path") or "log") / calibration.judged_on.split
    for task, of_task in calibration.judged.items():
        labels = [label for label in _column(rows, task) if label is not None and label == label]
        yield from _unequal("rows that judge", of_task.rows, len(labels))
        yield from _unequal("positives that judge", of_task.positives, sum(label == 1 for label in labels))
    if list(folder.rglob("*.json.rows")):
        yield "calibrate: predictions are left"


def tuned(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of tune: the score and the run of the best trial, and best.yaml."""
    out = folder / (case.place("--out") or "")
    best = [trial for trial in pq.read_table(out / "trials.parquet").to_pylist() if trial["best"]]
    if len(best) != 1 or not math.isfinite(math.nan if best[0]["score"] is None else best[0]["score"]):
        yield f"tune: {len(best)} best trials with a score"
        return
    yield from _reloads(out / "best.yaml")
    yield from wrong_run(out / "trials" / f"{best[0]['trial']:04d}", folder)


def compared(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of compare: the test results of each run, and the report."""
    out = folder / (case.place("--out") or "")
    rows = folder / "log" / (case.option("--split") or "test") if case.place("--data.path") == "log" else None
    results = [_read(path) for path in sorted(out.glob("runs/*/*/test.json"))]
    for result in results:
        yield from wrong_metrics(result.get("metrics", {}), rows)
    if not results or not (out / "report.md").is_file():
        yield "compare: no results or no report"


def converted(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of convert: the new run has the other layout and the same metrics."""
    run, new = (folder / (case.place(option) or "") for option in ("--run", "--out"))
    yield from _reloads(new / "config.yaml")
    if _config(run).model.layout == _config(new).model.layout:
        yield "convert: the new run has the layout of the old one"
    if (run / "metrics.json").exists():
        metrics = _read(new / "metrics.json")["valid"]
        if metrics != _read(run / "metrics.json")["valid"]:
            yield "convert: the metrics differ from those of the run"
        if not _is_edited(case, f"{case.place('--run')}/metrics.json"):
            yield from wrong_metrics(metrics, folder / "log/valid")


def exported(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of export: a bundle of tasks of the run whose files are whole."""
    try:
        bundle = read_manifest(folder / (case.place("--out") or ""))
    except UserError as error:
        yield f"export: {str(error).replace(str(folder), '')}"
        return
    if not bundle.tasks or not set(bundle.tasks) <= {"finish", "like"}:
        yield f"export: the bundle has the tasks {bundle.tasks}"


def applied(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of apply_delta: the last delta that was asked for; a copy then has the weights of the end of the run."""
    to, until = case.place("--to") or "", case.option("--until")
    try:
        is_bundle = (folder / to / MANIFEST_FILE).exists()
        at = applied_to_bundle(read_manifest(folder / to)) if is_bundle else applied_to_copy(folder / to)
    except UserError as error:
        yield f"apply: {str(error).replace(str(folder), '')}"
        return
    if at is None or (until not in (None, "None") and at.number != int(until)):
        yield f"apply: {at} instead of {until}"
    elif at.number == LAST_DELTA and not is_bundle and not any(_is_edited(case, name) for name in ("run", to)):
        ended, copied = (tensors_of(folder / run / "best") for run in ("run", to))
        if any(name not in copied or not torch.equal(copied[name], value) for name, value in ended.items()):
            yield "apply: the copy has other weights than the run"


def scored(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of score: a probability of each task for each row."""
    rows, output = folder / (case.place("--input") or ""), folder / (case.place("--output") or "")
    if {rows.suffix, output.suffix} == {".parquet"} and case.option("--output-format") is None:
        scores = pq.read_table(output).select(["finish", "like"])
        yield from _unequal("rows with probabilities", pq.read_metadata(rows).num_rows, scores.num_rows)
        if any(not 0 < value < 1 for column in scores.columns for value in column.drop_null().to_pylist()):
            yield "score: a number is no probability"


def made_log(case: Case, answer: Answer, folder: Path) -> Iterator[str]:
    """Of prepare and the scripts in datasets/: the rows and positives that schema.json counts."""
    out = folder / (case.place("--out") or "")
    for split, counts in _read(out / "schema.json")["splits"].items():
        yield from _unequal(f"rows of the {split} split", counts["rows"], _count(out / split))
        for label, of_label in counts["labels"].items():
            positives = sum(value == 1 for value in _column(out / split, label))
            yield from _unequal(f"positives of the {split} split", of_label["positives"], positives)


RESULTS: Mapping[str, Callable[[Case, Answer, Path], Iterator[str]]] = {
    "train": trained,
    "evaluate": evaluated,
    "calibrate": calibrated,
    "tune": tuned,
    "compare": compared,
    "convert": converted,
    "export": exported,
    "apply_delta": applied,
    "score": scored,
    "synthetic": made_log,
    "kuairand": made_log,
    "prepare": made_log,
}
"""What is wrong with the results of each command, in words that are the same for the same fault."""


def wrong_run(run: Path, folder: Path) -> Iterator[str]:
    """What is wrong with the metrics and the configuration of a run folder."""
    log = _log_of(run, folder)
    yield from wrong_metrics(_read(run / "metrics.json")["valid"], log and log / "valid")
    yield from _reloads(run / "config.yaml")


def wrong_metrics(metrics: Metrics, split: Path | None) -> Iterator[str]:
    """What is wrong with metrics.

    Args:
        metrics: of an evaluation.
        split: the folder of the rows that it must have read; None if these are not known.
    """
    for task, values in metrics.items():
        for name, value in values.items():
            if (value is None and _is_defined(name, values)) or (value is not None and not math.isfinite(value)):
                yield f"metric: {name} of a task is {value}"
        rows, positives = values["rows"], values["positives"]
        if split is not None and not _has_weights(split.parent / "schema.json"):
            # NaN is a missing label, as null is.
            labels = [label for label in _column(split, task) if label is not None and label == label]
            yield from _unequal("evaluated rows", rows, len(labels))
            yield from _unequal("evaluated positives", positives, sum(label == 1 for label in labels))
        if split is not None and min(positives, rows - positives) >= FEW and (values["auc"] or 0) > 0.999:
            yield "auc: random labels are predicted"


def rows_trained(lines: Iterable[Mapping[str, Any]], *, resumed_after: int = 0) -> float | None:
    """Rows of all steps, which are the samples a second times the seconds of each line of a metrics.jsonl.

    None if some steps have no such line: those before an evaluation that follows no line, or before a resumption.
    """
    lines = list(lines)
    readings = [line for line in lines if "train/step_ms" in line]
    steps = [0, *(line["step"] for line in readings)]
    if resumed_after not in steps or any(line["step"] not in steps for line in lines):
        return None
    rows_a_step = [line["train/samples_per_second"] * line["train/step_ms"] / 1000 for line in readings]
    return sum(rows * (end - start) for rows, (start, end) in zip(rows_a_step, pairwise(steps), strict=True))


def _wrong_steps(run: Path, folder: Path, resumed_after: int) -> Iterator[str]:
    """Whether the steps of a run that made all its epochs had all rows of its log."""
    loop, log = _config(run).train, _log_of(run, folder)
    if log is None or loop.max_steps is not None or loop.patience is not None:
        return
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    rows = rows_trained(lines, resumed_after=resumed_after)
    if rows is not None:
        yield from _unequal("trained rows", round(rows), loop.epochs * _count(log / "train"))


def _is_defined(name: str, values: Mapping[str, Any]) -> bool:
    """Whether the rows of a task define a metric."""
    rows, positives = values["rows"], values["positives"]
    both = 0 < positives < rows
    return {"auc": both, "ne": both, "pcoc": positives > 0, "gauc": values["gauc_groups"] > 0}.get(name, rows > 0)


def _log_of(run: Path, folder: Path) -> Path | None:
    """The log of a run if it is log/ and no row may be skipped."""
    data, log = _config(run).data, folder / "log"
    own = data.path is not None and os.path.realpath(data.path) == os.path.realpath(log)
    return log if own and data.on_bad_row != "skip" else None


def _has_weights(schema: Path) -> bool:
    """Whether rows may weigh 0, and then do not count."""
    return any(_read(schema).get(name) for name in ("weight", "label_weights"))


def _config(run: Path) -> Any:
    return load_config(str(run / "config.yaml"))


def _reloads(path: Path) -> Iterator[str]:
    if dump_config(load_config(str(path))) != path.read_text():
        yield f"{path.name}: reloads as another configuration"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(), parse_constant=float)


def _unequal(what: str, read: int, in_files: int) -> Iterator[str]:
    if read != in_files:
        yield f"rows: {read} {what}, the files have {in_files}"


def _is_edited(case: Case, path: str) -> bool:
    """Whether an edit of the case changes a file or folder, what is in it, or what it is in."""
    places = [edit[key] for edit in case.edits for key in ("path", "to") if key in edit]
    return any(f"{a}/".startswith(f"{b}/") for place in places for a, b in ((place, path), (path, place)))


def _count(folder: Path) -> int:
    return sum(1 for _ in _column(folder, ""))


def _column(folder: Path, name: str) -> Iterator[Any]:
    """The values of a column in all files below a folder but those that Spark or macOS hide; None where it is not."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix.lower() in (".parquet", ".pq") and not hidden:
            with pq.ParquetFile(path) as file:
                known = name in file.schema_arrow.names
                # Of another column only the number of values counts.
                table = file.read([name] if known else file.schema_arrow.names[:1])
                yield from table.column(0).to_pylist() if known else [None] * table.num_rows
