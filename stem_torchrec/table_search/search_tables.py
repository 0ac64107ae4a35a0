"""Searches for the tables that tasks deserve: measures, chooses, trains the choice and judges it on other users."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.label_kinds import refusal_of_kinds
from stem_torchrec.data.schema import load_schema
from stem_torchrec.inspection.predicted_rows import PredictedRows, predict_rows
from stem_torchrec.inspection.two_runs import differences
from stem_torchrec.models.build import build_model
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.process import Process
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.runtime.whole_file import whole_file
from stem_torchrec.table_search.kept_tables import keep_tables, model_to_take, sentence_of, with_kept
from stem_torchrec.table_search.options import TableSearch
from stem_torchrec.table_search.table_worth import TableWorth, first_half, measure_tables
from stem_torchrec.tables import SHARED, table_configs, table_group
from stem_torchrec.training.best_by_task import note_of_mean
from stem_torchrec.training.configuration import with_trained_options
from stem_torchrec.training.left_out import LeftOut, trained_or_left_out
from stem_torchrec.training.recorded_options import write_or_check
from stem_torchrec.training.run_evaluation import EvaluateConfig
from stem_torchrec.training.sparse_optimizers import states_of_tables
from stem_torchrec.training.trainer import train


def search_tables(search: TableSearch, base: TrainConfig, process: Process) -> None:
    """Writes best.yaml, worth.parquet and report.md.

    best.yaml has the options of a run with the tables that are kept; or with all, or shared ones alone, where the
    comparison finds these better and they fit the budget. Of the choice and shared tables alone, what cannot be trained
    is left out of it; see `trained_or_left_out`.

    Args:
        search: how to search.
        base: what to train, with all tables that are to be judged.
        process: the only rank.

    Raises UserError for several ranks, labels that are not binary, a folder of another search, or a budget below the
    shared tables.
    """
    if process.world_size > 1:
        raise UserError(
            f"--what tables runs in one process, not in {process.world_size}; train the model with all tables on any "
            "number of ranks, and give it as --run."
        )
    _check_kinds(search, base)
    folder = Path(search.out)
    with FolderLock(take_over=base.take_over) as lock:
        lock.take(search.out, other="--out")
        file = folder / "search.yaml"
        write_or_check(
            file,
            {"train": to_dict(what_is_trained(base)), "run": search.run},
            # Each run in the folder compares its own options as well.
            begun=file.exists() or any(folder.glob("runs/*")),
            refusal=f"{folder} holds a search with other options",
            fix="give another --out, or the same options",
            as_of_now=with_trained_options,
        )
        whole = search.run or _trained(base, folder / "runs" / "all", process)
        measured = measure_tables(whole, process, rows=search.rows)
        record = RunRecord.read(path_of(whole), "all")
        model = record.config.model
        assert isinstance(model, OwnTableOptions), "read_command_line refuses other models"
        budget = None if search.budget_gb is None else search.budget_gb * 1e9
        kept = keep_tables(measured, shared_bytes=_bytes(record, [SHARED]), budget=budget)
        names = [each.table for each in measured]
        chosen = with_kept(model, names, [each.table for each in kept], record.tasks)
        write_text(folder / "best.yaml", dump_config(replace(base, model=chosen)))
        with whole_file(folder / "worth.parquet") as new:
            pq.write_table(pa.Table.from_pylist([asdict(each) for each in measured]), new)
        lines, choice_is, taken = _table(measured, kept), dict[str, list[str]](), "chosen"
        if search.trains_choice:
            models = {"all": model, "chosen": chosen, "shared": with_kept(model, names, [], record.tasks)}
            runs, left_out = _runs_of(models, whole, base, folder, process)
            lines += [f"Left out, as it could not be trained: {each.left_out}\n" for each in left_out]
            if "chosen" in runs:
                judged, choice_is = _judged(runs, process, rows=search.rows)
                lines += judged
            fits_all = budget is None or _bytes(record) <= budget
            taken = model_to_take(choice_is, ["shared", *(["all"] if fits_all else [])])
            write_text(folder / "best.yaml", dump_config(replace(base, model=models[taken])))
        lines.append(sentence_of(taken, choice_is))
        if (note := note_of_mean(path_of(whole), "the worth of its tables is measured with")) is not None:
            lines += ["", f"Note: {note}."]
        lock.confirm()
        write_text(folder / "report.md", "\n".join(["# Tables that tasks deserve", "", *lines, ""]))
    log_rank0("\n" + "\n".join(lines) + f"\n\n{folder} has best.yaml and report.md.")


def _check_kinds(search: TableSearch, base: TrainConfig) -> None:
    """Raises UserError for a label that is not binary, before anything is trained: tables are judged by log losses."""
    if search.run is not None:
        columns = RunRecord.read(path_of(search.run), "run").columns
        fix = "give a --run that was trained with {labels}"
    else:
        schema = load_schema(data_folder(base.data))
        columns = Columns.select(schema, features=base.data.features, labels=base.data.labels)
        fix = "leave the task out, as in {labels}"
    if refusal := refusal_of_kinds(columns, "stem-tune --what tables", fix=fix):
        raise UserError(refusal)


def _trained(config: TrainConfig, folder: Path, process: Process) -> str:
    """The folder of a run, which is trained unless it has ended before, or resumed."""
    train(replace(config, output_dir=str(folder)), process)
    return str(folder)


def _runs_of(
    models: Mapping[str, OwnTableOptions], whole: str, base: TrainConfig, folder: Path, process: Process
) -> tuple[dict[str, str], list[LeftOut]]:
    """The run of each model by its name, with `whole` as that of all tables; and why others could not be trained."""
    runs, left_out = {"all": whole}, list[LeftOut]()
    for name in ("chosen", "shared"):
        run = next((runs[other] for other in runs if models[other] == models[name]), None)
        if run is None:
            training = partial(_trained, replace(base, model=models[name]), folder / "runs" / name, process)
            run = trained_or_left_out(training, process, name=name, leave_out=left_out.append)
        runs |= {} if run is None else {name: run}
    return runs, left_out


def _bytes(record: RunRecord, groups: Sequence[str] | None = None) -> int:
    """Bytes of a run's tables and their states: of all, or of some groups in the split layout."""
    split = replace(record.config.model, layout="split")
    sizes = [
        (table.num_embeddings, table.embedding_dim)
        for table in table_configs(build_model(split, record.columns))
        if groups is None or table_group(table.name) in groups
    ]
    return 4 * (sum(rows * dim for rows, dim in sizes) + states_of_tables(sizes, record.config.sparse.name))


def _table(measured: Sequence[TableWorth], kept: Sequence[TableWorth]) -> list[str]:
    """What each table is worth, as lines of Markdown."""
    rows = [
        [each.table, f"{each.rows:,}", f"{each.bytes / 1e6:,.2f}"]
        + [f"{1e4 * number:+.2f}" for number in (each.worth, each.error, *each.by_task.values())]
        + ["yes" if each in kept else ""]
        for each in measured
    ]
    tasks = measured[0].by_task if measured else ()
    headers = ["table", "rows", "MB", "worth", "error", *tasks, "kept"]
    align = ("left", *["right"] * (len(headers) - 2), "left")
    return [
        "Worth: by how much the log loss of the tasks rises, in 1/10,000, if a group reads the best linear image of "
        "the shared table in the place of its own; the error is over users. Without a budget the tables are kept that "
        "are worth more than two errors.",
        "",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align),
        "",
    ]


def _judged(runs: Mapping[str, str], process: Process, *, rows: int) -> tuple[list[str], dict[str, list[str]]]:
    """The runs side by side on the users that were not measured on.

    Returns lines of Markdown; and by the name of another run the verdicts on the choice beside it.
    """
    predicted, records = dict[str, PredictedRows](), dict[str, RunRecord]()
    for name, run in runs.items():
        records[name] = RunRecord.read(path_of(run), name)
        predicted[name] = _other_half(predict_rows(EvaluateConfig(run), process, rows=rows, grown=False))
    tasks = list(records["chosen"].tasks)
    cells, choice_is = [], dict[str, list[str]]()
    for other in (name for name in runs if name != "chosen"):
        compared = differences(predicted["chosen"], predicted[other], tasks)
        choice_is[other] = [interval.verdict for interval in compared.intervals.values()]
        for (task, measure), interval in compared.intervals.items():
            value, before = compared.values[task, measure]
            ends = f"{interval.value:+.5f} [{interval.low:+.5f}, {interval.high:+.5f}]"
            cells.append([other, task, measure, f"{value:.5f}", f"{before:.5f}", ends, interval.verdict])
    headers = ["beside", "task", "measure", "chosen", "other", "difference", "chosen is"]
    sizes = ", ".join(f"{name} {_bytes(record) / 1e9:,.3g} GB" for name, record in records.items())
    return [
        f"Tables and states: {sizes}. Trained with one seed and compared on the validation users that were not "
        "measured on; intervals are over draws of users, p-values are adjusted by Holm.",
        "",
        tabulate(cells, headers, tablefmt="github", disable_numparse=True),
        "",
    ], choice_is


def _other_half(rows: PredictedRows) -> PredictedRows:
    kept = ~first_half(rows.users)
    return replace(
        rows,
        rows=int(kept.sum()),
        labels={task: values[kept] for task, values in rows.labels.items()},
        weights={task: None if values is None else values[kept] for task, values in rows.weights.items()},
        scores={task: values[kept] for task, values in rows.scores.items()},
        users=rows.users[kept],
    )
