"""All numbers of an inspection as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stem_torchrec.config.formats import with_format
from stem_torchrec.config.json_text import parse_json
from stem_torchrec.inspection.gate_facts import gate_facts
from stem_torchrec.inspection.inspected_run import InspectedRun
from stem_torchrec.inspection.table_facts import dead_tables, shares_of_input
from stem_torchrec.inspection.two_runs import Differences, FeatureChange
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import write_json

FORMAT = 1
"""Format version of the file."""
_KIND = "inspected_runs"


def write_numbers(
    file: Path,
    runs: Sequence[InspectedRun],
    *,
    differences: Differences | None,
    changes: Sequence[FeatureChange],
    only: Sequence[str],
) -> None:
    """Writes the file; a number that is not finite is null. Raises UnwritableError."""
    content: dict[str, Any] = {_KIND: [_of_run(run) for run in runs], "only_one_has": list(only)}
    if differences is not None:
        content["differences"] = [
            {"task": task, "metric": name, "run": differences.values[task, name][0]}
            | {"other": differences.values[task, name][1], **each.numbers, "p_adjusted": each.adjusted}
            for (task, name), each in differences.intervals.items()
        ]
    content["tables_of_both"] = [asdict(table) for each in changes for table in each.tables]
    content["changed_between"] = [{"feature": e.feature, **asdict(each)} for e in changes for each in e.changed]
    write_json(file, with_format(_finite(content), FORMAT))


def _of_run(run: InspectedRun) -> dict[str, Any]:
    shares, predicted = shares_of_input(run.features), run.predicted
    gates = [] if predicted is None else gate_facts(predicted, run.groups)
    return {
        "run": str(run.record.folder),
        "model": run.record.config.model.arch,
        "start": run.start.name,
        "ids": run.ids.note,
        "rows": None if predicted is None else predicted.rows,
        "metrics": {} if predicted is None else to_json({task: predicted.metrics[task] for task in run.tasks}),
        "gates": [
            {"layer": each.layer, "stream": each.stream, "group": each.group, "mean": each.mean, "even": each.even}
            | {"deviation": each.deviation} | {f"p{q}": each.quantile(q / 100) for q in (5, 25, 50, 75, 95)}
            for each in gates
        ],
        "features": [{"feature": each.feature, "rows": each.rows, "seen": each.seen} for each in run.features],
        "tables": [
            asdict(table) | {"share_of_input": shares[each.feature, group]}
            for each in run.features
            for group, table in each.tables.items()
        ],
        "similarity": [
            {"feature": each.feature, "group": a, "other": b, "similarity": value}
            for each in run.features
            for (a, b), value in each.similarity.items()
        ],
        "changed": [
            {"feature": each.feature, **asdict(one), "value": values.get(one.id)}
            for each in run.features
            for values in [run.values(each.feature, each.changed)]
            for one in each.changed
        ],
        "dead": [{"feature": f, "group": group, "why": why} for f, group, why in dead_tables(run.features)],
    }  # fmt: skip


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(each) for name, each in value.items()}
        case list():
            return [_finite(each) for each in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def check_numbers_file(file: Path) -> None:
    """Raises UserError for a file that exists and does not hold the numbers of an inspection."""
    if not file.is_file() or not file.stat().st_size:
        return
    try:
        content = parse_json(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, Mapping) or _KIND not in content:
        raise UserError(f"--json {file} exists, and does not hold the numbers of an inspection; give another.")
