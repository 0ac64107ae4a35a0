"""Trains what is missing on every source, and reports on what is done."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event

from stem_torchrec.comparison.train_all import check_recorded, train_all
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.hang_detection import collective_timeout
from stem_torchrec.runtime.process import Process, from_first_rank, join_process_group
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.signals import ending_on_signals

from gains.done import Done
from gains.family import compare
from gains.options import PaysOptions
from gains.report import write_report
from gains.sources import OfSource, Source, comparisons_on


def compare_sources(options: PaysOptions, sources: Mapping[str, Source], rest: Sequence[str]) -> None:
    """Trains the models of every source, one source after another, then writes the report.

    A source on which another process is at work is left to it; one whose base cannot be trained is left out.

    Args:
        options: what to compare.
        sources: by name.
        rest: options of compare.py and train.py.

    Raises UserError for options that do not fit a source, before anything is trained, and for a folder with results of
    other options.
    """
    line = ["--models", options.models, "--base", options.base, "--seeds", options.seeds]
    line += ["--variants", options.variants] if options.variants else []
    of_sources = comparisons_on(sources, [*line, *rest], out=options.out, split=options.split)
    first = of_sources[0].request
    timeout = collective_timeout(first.train.train.timeout)
    with ending_on_signals() as ending, join_process_group(timeout=timeout) as process:
        for each in of_sources:
            if not options.report_only and each.name in (options.only or sources):
                _train(each, process, ending)
            else:
                for request in each.by_log:
                    check_recorded(request, process)
    if process.is_first:
        done = [Done(each) for each in of_sources]
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        models = {name: variant.text for name, variant in first.variants.items()}
        if options.rival_of_two:
            models[done[0].of_two] = f"two runs of {done[0].base} with different seeds, averaged by their logits"
        family = compare(done, first.config, rival_of_two=options.rival_of_two)
        write_report(folder, done, family, models=models, split=options.split)


def _train(of_source: OfSource, process: Process, ending: Event) -> None:
    base = of_source.request.config.base
    for request in of_source.by_log:
        log_rank0(f"\nsource {of_source.name}: {request.config.out}")
        if not from_first_rank(partial(_is_free, request.config.out)):
            continue
        try:
            train_all(request, process, ending=ending)
        except UserError as error:
            if from_first_rank(lambda: base not in Done(of_source).left_out):
                raise
            log_rank0(f"source {of_source.name} is left out: {error}")


def _is_free(folder: str) -> bool:
    """Whether no other process trains in a folder; prints a note if one does."""
    try:
        FolderLock().check(folder, other="--out")
    except UserError as error:
        print(f"left to another process: {error}")
        return False
    return True
