"""Trains and tests the runs of a comparison, after a search for each model's settings if the options ask for one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

from stem_torchrec.comparison.grid_search import search_grid
from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.parts import Part
from stem_torchrec.comparison.recorded import COMPARISON_FILE, record_options
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.runs import train_and_test
from stem_torchrec.comparison.scored_rows import Comparison, check_base
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import TimeLeft, log_rank0, progress_bar
from stem_torchrec.training.open_fields import with_open_fields


def train_all(
    request: Request, process: Process, *, ending: Event | None = None, needs_base: bool = True
) -> Comparison:
    """Tunes, trains and tests what is not done yet; all ranks of the process group call it.

    Args:
        request: what `read_command_line` returns.
        process: this rank.
        ending: when it is set on some rank, the run under way writes a checkpoint and Interrupted is raised.
        needs_base: raises where the base is left out; else the other models are trained in any case, as one of several
            logs is of use without it.

    A model that cannot be trained is left out; see `trained_or_left_out`. Raises UserError if the request does not fit
    the log, the folder is in use or holds another comparison, or the base is left out.
    """
    request = _ready(request, process)
    with FolderLock(take_over=request.train.take_over) as lock:
        from_first_rank(lambda: lock.take(request.config.out, other="--out"))
        return _train_in_folder(request, process, lock, ending=ending, needs_base=needs_base)


def check_recorded(request: Request, process: Process) -> None:
    """Raises UserError if the folder of a comparison holds one with other options; all ranks call it.

    Args:
        request: what `read_command_line` returns.
        process: this rank.
    """
    if from_first_rank((Path(request.config.out) / COMPARISON_FILE).exists):
        request = _ready(request, process)
        from_first_rank(lambda: record_options(request, process.world_size))


def _ready(request: Request, process: Process) -> Request:
    """The request with what depends on the log and on the number of ranks."""
    request = resolve_log(request)
    path = request.train.data.path or ""
    return replace(request, train=with_open_fields(request.train, path, process))


def _train_in_folder(
    request: Request, process: Process, lock: FolderLock, *, ending: Event | None, needs_base: bool
) -> Comparison:
    from_first_rank(lambda: record_options(request, process.world_size))
    grid, parts = request.grid, [part for parts in request.parts().values() for part in parts]
    tuned: Mapping[Part, Part] = {part: part for part in parts}
    if grid is not None:
        tuned = search_grid(grid, parts, config=request.train, process=process, ending=ending)
    left_out = from_first_rank(lambda: left_out_of(request))
    if needs_base:
        check_base(request.config.base, left_out)
    left_out = _train_runs(request, tuned, process, lock, ending=ending, left_out=left_out)
    if needs_base:
        check_base(request.config.base, left_out)
    return Comparison(
        request.config,
        request.train,
        runs=[run for run in request.runs if run.model not in left_out],
        pair=request.pair,
        tried=from_first_rank(lambda: grid.rows(parts) if grid else []),
        left_out=left_out,
        variants=request.variants,
    )


def left_out_of(request: Request) -> dict[str, str]:
    """The models of a comparison that could not be trained, so far, with the reason."""
    left_out = {run.model: reason for run in request.runs if (reason := run.left_out()) is not None}
    for model, parts in request.parts().items() if request.grid is not None else ():
        assert request.grid is not None
        reasons = [request.grid.left_out(part, parts=len(parts)) for part in parts]
        if (reason := next(filter(None, reasons), None)) is not None:
            left_out.setdefault(model, reason)
    return left_out


def _train_runs(
    request: Request,
    tuned: Mapping[Part, Part],
    process: Process,
    lock: FolderLock,
    *,
    ending: Event | None,
    left_out: Mapping[str, str],
) -> dict[str, str]:
    """Trains and tests the runs that are missing, but of models that are left out; returns these, and new ones."""
    left_out = dict(left_out)
    # Rank 0 decides what is left to do: a shared file system may show the other ranks fewer files.
    missing = from_first_rank(lambda: [run for run in request.runs if not run.done])
    if len(missing) < len(request.runs):
        log_rank0(f"{len(request.runs) - len(missing)} of {len(request.runs)} runs are done already")
    parts = request.parts()
    with progress_bar(len(missing), "run") as bar:
        left = TimeLeft(len(missing))
        for number, run in enumerate(missing):
            if run.model in left_out:
                log_rank0(f"\nrun {number + 1} of {len(missing)}: {run.model} is left out")
                continue
            name = f"{run.model}, seed {run.seed}, in {run.folder}"
            log_rank0(f"\nrun {number + 1} of {len(missing)}{left.after(number)}: {name}")
            from_first_rank(lock.confirm)
            of_run = [tuned[part] for part in parts[run.model]]
            train_and_test(run, of_run, request.train, split=request.config.split, process=process, ending=ending)
            if (reason := from_first_rank(run.left_out)) is not None:
                left_out[run.model] = reason
            bar.update()
    return left_out
