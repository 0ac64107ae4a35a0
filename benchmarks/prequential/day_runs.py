"""A day's run, and its test on the next day; an interrupted one begins again, so that its seconds are whole."""

import gc
import json
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.run_evaluation import EvaluateConfig, EvaluationData, evaluate_run
from stem_torchrec.training.trainer import train

from prequential.day_logs import TESTED
from prequential.policies import POLICIES, Walker


def train_day(
    walker: Walker, day: int, before: int | None, log: Path, options: Sequence[str], process: Process
) -> None:
    """Trains the run of a day, unless it is done; all ranks call it.

    Args:
        walker: whose run it is.
        day: the day.
        before: the day before; None on the first day.
        log: what is trained on.
        options: of train.py.
        process: this rank.
    """
    run, start = walker.run(day), POLICIES[walker.policy].start
    line = [*options, "--data.path", str(log), "--output-dir", str(run), "--seed", str(walker.seed)]
    if before is not None and start is not None:
        line += ["--start-from", f"{walker.run(before)}{start}"]
        # It changes nothing on days whose ids are of the kind of the day before.
        line += ["--start.hash-ids"] if POLICIES[walker.policy].switches else []
    rows = load_schema(str(log)).splits["train"].rows
    _once(run, lambda: train(config_from_command_line(line), process), {"rows": rows})


def predict_day(walker: Walker, day: int, before: int, log: Path, process: Process) -> None:
    """Predicts the rows of a day by the run of the day before, unless that is done; all ranks call it.

    Args:
        walker: whose predictions they are.
        day: the day.
        before: the day before.
        log: that of `day`, with the ids of the run.
        process: this rank.
    """
    predictions = walker.predictions(day)
    config = EvaluateConfig(
        run=str(walker.run(before)), data=EvaluationData(path=str(log)), split=TESTED, predictions=str(predictions)
    )
    _once(predictions, lambda: evaluate_run(config, process), {})


def cost_of(run: Path) -> dict[str, float]:
    """The rows that a run was trained on, its seconds, and those of the processors in rank 0."""
    return json.loads(_done(run).read_text())


def _once(folder: Path, work: Callable[[], object], facts: dict[str, Any]) -> None:
    """Does what makes a folder unless it is done, and notes `facts` and the seconds that it took."""
    if from_first_rank(_done(folder).exists):
        return
    log_rank0(f"\n{folder}")
    from_first_rank(partial(shutil.rmtree, folder, ignore_errors=True))
    begin, used = time.perf_counter(), time.process_time()
    work()
    facts |= {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - used}
    # Sharded modules live in reference cycles; without this the next model is built while this one is in memory.
    gc.collect()
    from_first_rank(lambda: write_json(_done(folder), facts))


def _done(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")
