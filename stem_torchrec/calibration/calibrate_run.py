"""Calibrates a run: predictions of its log in fp32, curves of its tasks, calibration.json."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import tyro
from tabulate import tabulate

from stem_torchrec.calibration.calibration_file import (
    CALIBRATION_FILE,
    BeforeAndAfter,
    Calibration,
    read_calibration,
    write_calibration,
)
from stem_torchrec.calibration.fit import Method
from stem_torchrec.calibration.fit_tasks import fit_tasks
from stem_torchrec.calibration.rows_of_run import rows_of_run
from stem_torchrec.config.path_fields import with_paths
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.folder_lock import FolderLock
from stem_torchrec.runtime.owner_file import read_owner
from stem_torchrec.runtime.path_options import InputFolder, OutputFile
from stem_torchrec.runtime.paths import check_writable, remove_tree
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.store_path import AnyPath, path_of
from stem_torchrec.training.best_by_task import checksum_of_tasks
from stem_torchrec.training.evaluation_outputs import check_apart
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run


@dataclass(frozen=True)
class CalibrateConfig:
    """Which run to calibrate, and how."""

    run: Annotated[InputFolder, tyro.conf.arg(aliases=["--run-dir"])] = ""
    """The run folder that training wrote. Under torchrun use --run-dir, as torchrun takes --run for its own."""
    method: Method = "platt"
    """platt fits two numbers; isotonic fits any curve that does not fall, for which a few hundred labels 1 are few."""
    data: EvaluationData = field(default_factory=EvaluationData)
    """The log with the rows to fit and to judge on."""
    judge_on: str | None = None
    """Folder of the log with later rows to judge on; by default test. Where the log has no test part with labels, the
    first half of the validation part is fitted, and the second half judges."""
    out: OutputFile | None = None
    """File for the curves; by default calibration.json in the run folder."""
    take_over: bool = False
    """Takes the file from another calibration that runs."""


def calibrate_run(config: CalibrateConfig, process: Process) -> Calibration:
    """Writes calibration.json and prints NE and PCOC before and after; all ranks of the process group call it.

    Predictions are made in fp32. They are on disk beside the file until they are read.

    Raises UserError where the run or its log are missing or do not fit, where the rows to judge on would be those to
    fit, and where no task gets a curve.
    """
    if not config.run:
        raise UserError("say which run to calibrate: --run RUN, the folder that training wrote.")
    config = with_paths(config)
    rows = rows_of_run(config.run, log=config.data.path, judge_on=config.judge_on)
    out = path_of(config.out or f"{config.run}/{CALIBRATION_FILE}")
    predictions, lock = out.with_name(f"{out.name}.rows"), FolderLock(take_over=config.take_over)
    # Before the predictions, so that the file does not fit weights that a training writes meanwhile.
    weights = from_first_rank(lambda: checksum_of_tasks(path_of(config.run), rows.tasks))
    from_first_rank(lambda: _prepare(out, predictions, config.run, lock))

    def fit() -> Calibration:
        lock.confirm()
        calibration = fit_tasks(predictions, rows, method=config.method, weights=weights)
        lock.confirm()
        write_calibration(out, calibration)
        return calibration

    try:
        for split in dict.fromkeys((rows.fitted.split, rows.judged.split)):
            folder = str(predictions / split)
            evaluation = EvaluateConfig(config.run, config.data, split, precision="fp32", predictions=folder)
            evaluate_run(evaluation, process)
            # Sharded modules live in reference cycles; without this two models would be in memory.
            gc.collect()
        calibration = from_first_rank(fit)
    finally:
        if process.is_first and not lock.lost:
            remove_tree(predictions)
        lock.release()
    log_rank0(f"\n{out}: {config.method}, fitted on {rows.fitted}, judged on {rows.judged}")
    log_rank0(format_judged(calibration.judged))
    for task, reason in calibration.kept.items():
        log_rank0(f"note: task {task!r} keeps its predictions: in {rows.fitted} {reason}")
    for task, each in calibration.judged.items():
        if each.ne_before is not None and each.ne_after is not None and each.ne_after > each.ne_before:
            log_rank0(f"note: the curve of task {task!r} raises its NE; try another --method, or fit more rows")
    return calibration


def _prepare(out: AnyPath, predictions: AnyPath, run: str, lock: FolderLock) -> None:
    """Checks the file and takes the folder of the predictions; removes what a calibration that was killed has left."""
    check_apart(str(out), run, "--out")
    if out.exists():
        try:
            read_calibration(out, weights=None)
        except UserError as error:
            raise UserError(
                f"{out} exists, and is no calibration to replace; give another --out, or delete it."
            ) from error
    check_writable(out.parent)
    lock.check(str(predictions), other="--out")
    if read_owner(str(predictions)) is not None:
        remove_tree(predictions)
    if predictions.exists():
        raise UserError(f"{predictions} exists, where the predictions would go; give another --out, or delete it.")
    lock.take(str(predictions), other="--out")


def format_judged(judged: Mapping[str, BeforeAndAfter]) -> str:
    """A table with a line for each task, `-` for what its labels leave undefined.

    Example::

        # task      rows    positives    NE before    NE after    PCOC before    PCOC after
        # ------  ------  -----------  -----------  ----------  -------------  ------------
        # like    13,090          201      0.81180     0.80712        1.16263       1.02411
    """
    names = ["task", "rows", "positives", "NE before", "NE after", "PCOC before", "PCOC after"]
    lines = [
        [task, f"{each.rows:,}", f"{each.positives:,}"]
        + [
            "-" if value is None else f"{value:.5f}"
            for value in (each.ne_before, each.ne_after, each.pcoc_before, each.pcoc_after)
        ]
        for task, each in judged.items()
    ]
    return tabulate(lines, names, disable_numparse=True, colalign=["left"] + ["right"] * 6)
