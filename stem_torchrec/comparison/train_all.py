"""Trains several models on one log with several seeds, and reports what each is worth and where.

python stem_torchrec/compare.py --data.path DIR --models stem,single_task,mmoe --seeds 0,1,2 --out DIR
"""

from collections.abc import Mapping
from threading import Event

from stem_torchrec.comparison.choices import try_cell
from stem_torchrec.comparison.options import Request, claim_folder, prepare
from stem_torchrec.comparison.runs import Part, train_and_test
from stem_torchrec.comparison.tested import Comparison
from stem_torchrec.config import TrainConfig
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import TimeLeft, log_rank0, progress_bar


def train_all(request: Request, process: Process, *, ending: Event | None = None) -> Comparison:
    """Tunes, trains and tests what is not done yet; all ranks of the process group call it.

    Args:
        request: what to compare.
        process: this rank.
        ending: once it is set on some rank, ends by Interrupted after a checkpoint of the run under way.

    Raises UserError where the request does not fit the log, the folder holds another comparison, or a run of the base
    diverged.
    """
    request = prepare(request)
    from_first_rank(lambda: claim_folder(request, process.world_size))
    config, train, grid = request.config, request.train, request.grid
    parts = request.parts()
    every = [part for of_model in parts.values() for part in of_model]
    configs: Mapping[Part, TrainConfig] = dict.fromkeys(every, train)
    # What is left to do is what rank 0 finds: a shared file system may show the others less.
    if grid is not None:
        untried = from_first_rank(lambda: grid.missing(every))
        with progress_bar(len(untried), "trial") as bar:
            left = TimeLeft(len(untried))
            for number, (part, cell) in enumerate(untried):
                log_rank0(f"\ntrial {number + 1} of {len(untried)}{left.after(number)}")
                try_cell(grid, part, cell, train, process, ending=ending)
                bar.update()
        configs = from_first_rank(lambda: {part: grid.choose(part).of(train) for part in every})
    missing = from_first_rank(lambda: [run for run in request.runs if not run.done])
    if len(missing) < len(request.runs):
        log_rank0(f"{len(request.runs) - len(missing)} of {len(request.runs)} runs are done already")
    with progress_bar(len(missing), "run") as bar:
        left = TimeLeft(len(missing))
        for number, run in enumerate(missing):
            name = f"{run.model}, seed {run.seed}, in {run.folder}"
            log_rank0(f"\nrun {number + 1} of {len(missing)}{left.after(number)}: {name}")
            of_parts = {part: configs[part] for part in parts[run.model]}
            train_and_test(run, of_parts, config.split, process, ending=ending)
            bar.update()
    diverged = from_first_rank(
        lambda: {run.model: said for run in request.runs if (said := run.test().get("diverged"))}
    )
    if config.base in diverged:
        raise UserError(
            f"{diverged[config.base].rstrip('.')}; with --base {config.base} there is nothing to compare with, give "
            "another, or lower rates and another --out."
        )
    return Comparison(
        config,
        train,
        runs=[run for run in request.runs if run.model not in diverged],
        pair=request.pair,
        chosen=from_first_rank(lambda: grid.rows(every) if grid else []),
        diverged=diverged,
    )
