"""Trains and tests the runs of a comparison, after a search for each model's settings if the options ask for one."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event

from stem_torchrec.comparison.grid_search import search_grid
from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.parts import Part
from stem_torchrec.comparison.recorded import COMPARISON_FILE, record_options
from stem_torchrec.comparison.resolved import resolve_log
from stem_torchrec.comparison.runs import train_and_test
from stem_torchrec.comparison.scored_rows import Comparison
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import TimeLeft, log_rank0, progress_bar
from stem_torchrec.training.open_fields import with_open_fields


def train_all(request: Request, process: Process, *, ending: Event | None = None) -> Comparison:
    """Tunes, trains and tests what is not done yet; all ranks of the process group call it.

    Args:
        request: what `read_command_line` returns.
        process: this rank.
        ending: when it is set on some rank, the run under way writes a checkpoint and Interrupted is raised.

    A model that cannot be trained is left out; see `trained_or_left_out`. Raises UserError if the request does not fit
    the log, the folder is in use or holds another comparison, or the base is left out.
    """
    request = _ready(request, process)
    with FolderLock(take_over=request.train.take_over) as lock:
        from_first_rank(lambda: lock.take(request.config.out, other="--out"))
        return _train_in_folder(request, process, lock, ending=ending)


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


def _train_in_folder(request: Request, process: Process, lock: FolderLock, *, ending: Event | None) -> Comparison:
    from_first_rank(lambda: record_options(request, process.world_size))
    grid, parts = request.grid, [part for parts in request.parts().values() for part in parts]
    tuned: Mapping[Part, Part] = {part: part for part in parts}
    if grid is not None:
        tuned = search_grid(grid, parts, config=request.train, process=process, ending=ending)
    _train_runs(request, tuned, process, lock, ending=ending)
    left_out = from_first_rank(lambda: left_out_of(request))
    _check_base(request, left_out)
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


def _check_base(request: Request, left_out: Mapping[str, str]) -> None:
    base = request.config.base
    if base in left_out:
        raise UserError(
            f"{left_out[base].rstrip('.')}; the other models cannot be compared with --base {base}: give another "
            "--base, or train it with other options in another --out."
        )


def _train_runs(
    request: Request, tuned: Mapping[Part, Part], process: Process, lock: FolderLock, *, ending: Event | None
) -> None:
    # Rank 0 decides what is left to do: a shared file system may show the other ranks fewer files.
    missing = from_first_rank(lambda: [run for run in request.runs if not run.done])
    if len(missing) < len(request.runs):
        log_rank0(f"{len(request.runs) - len(missing)} of {len(request.runs)} runs are done already")
    left_out = partial(left_out_of, request)
    _check_base(request, from_first_rank(left_out))
    parts = request.parts()
    with progress_bar(len(missing), "run") as bar:
        left = TimeLeft(len(missing))
        for number, run in enumerate(missing):
            if run.model in from_first_rank(left_out):
                log_rank0(f"\nrun {number + 1} of {len(missing)}: {run.model} is left out")
                continue
            name = f"{run.model}, seed {run.seed}, in {run.folder}"
            log_rank0(f"\nrun {number + 1} of {len(missing)}{left.after(number)}: {name}")
            from_first_rank(lock.confirm)
            of_run = [tuned[part] for part in parts[run.model]]
            train_and_test(run, of_run, request.train, split=request.config.split, process=process, ending=ending)
            bar.update()
