"""Profiles a few steps of a run: a trace for each rank, and a summary of the phases of a step."""

import os

import torch
import torch.distributed as dist
from tabulate import tabulate
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from stem_torchrec.metrics.collectives import gather
from stem_torchrec.profiles.phases import PHASES, StepTimes, step_times
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.paths import write_text
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.runtime.staging import Staging
from stem_torchrec.runtime.store_path import AnyPath
from stem_torchrec.runtime.whole_file import whole_file

SUMMARY_FILE = "summary.txt"

_SETTLE = 10
"""Steps before the profiler starts; the first steps allocate memory and set up the exchanges between ranks."""
_WARM_UP = 2
"""Steps that the profiler runs without recording; the first of them is slow."""
_RECORD = 5
"""Steps recorded."""
_LAST = _SETTLE + _WARM_UP + _RECORD
"""The last recorded step."""
_DRAIN = 2
"""Steps before an evaluation for which the pipeline reads no batch ahead, so they differ from the others."""

_MAX_RANK_COLUMNS = 8
"""Ranks up to which each has its own column in the summary; more share the columns mean, least and most."""
_MAX_OPERATIONS = 10
"""Operations listed in the summary."""

_SUMMARY = f"""\
Steps {_LAST - _RECORD + 1} to {_LAST}: milliseconds a step, mean of the ranks, and each rank's shares of its steps.

{{phases}}

A rank that waits for another does so in input dist, output dist or all-reduce. The profiler itself takes a few
microseconds for each operation.

The operations with the most time on rank 0, without what runs inside them:

{{operations}}

Each rank's trace, rank_*.json.gz beside this file, has every operation: open it in https://ui.perfetto.dev or
chrome://tracing.
"""


class StepProfiler:
    """Records steps 13 to 17 of a run with torch.profiler, then writes the traces and the summary.

    Args:
        folder: for `rank_0.json.gz`, ... of each rank and `summary.txt` of rank 0; created if it does not exist.
        device: of this rank; on CUDA the GPU's kernels are recorded as well.

    Example::

        with StepProfiler(Path("profile"), device) as profiler:
            fit(pipeline, batches, tasks=tasks, steps=100, callbacks=[ProfileSteps(profiler)])
    """

    def __init__(self, folder: AnyPath, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        # Kineto prints to standard error when it starts and stops, unless the user has set a level.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        # Without acc_events torch 2.11 warns that only the last cycle is kept, also where there is only one.
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=_SETTLE, warmup=_WARM_UP, active=_RECORD, repeat=1),
            acc_events=True,
        )

    def __enter__(self) -> "StepProfiler":
        self._profile.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        # A profiler that still records when Python exits crashes the process, which would hide the error.
        self._profile.stop()
        if error is None and self._profile.step_num < _LAST:
            log_rank0(
                f"the run ended after {self._profile.step_num} steps, profiling takes {_LAST}; no profile was written."
            )

    def step(self) -> None:
        """Counts a step; writes the profile after the last recorded one. All ranks call it after each step."""
        if self._profile.step_num == _LAST:
            return
        self._profile.step()
        if self._profile.step_num == _LAST:
            self._profile.stop()
            self._write()

    def _write(self) -> None:
        staging, rank = Staging(self.folder), dist.get_rank()
        staging.local.mkdir(parents=True, exist_ok=True)
        with whole_file(staging.local / f"rank_{rank}.json.gz") as trace:
            self._profile.export_chrome_trace(str(trace))
        times = step_times(self._profile.events())
        spent = [[phase.host, phase.device] for phase in times.phases.values()]
        ranks = gather(torch.tensor(spent, dtype=torch.float64, device=self.device)).cpu()
        table = format_phases(host=ranks[..., 0], device=ranks[..., 1])
        if rank == 0:
            summary = _SUMMARY.format(phases=table, operations=format_operations(times))
            write_text(staging.local / SUMMARY_FILE, summary)
        staging.close()
        log_rank0(f"\nwhere the time of a step goes; more in {self.folder / SUMMARY_FILE}:\n{table}\n")


def check_steps(steps: int) -> None:
    """Raises UserError if a run makes too few steps in a row to be profiled; called before the first step.

    Args:
        steps: number of steps before the first evaluation or the end of an epoch, whichever is first.
    """
    needed = _LAST + _DRAIN
    if steps < needed:
        raise UserError(
            f"--train.profile needs {needed} steps before the first evaluation, but this run makes {steps}; raise "
            "--train.max-steps or --train.eval-every, or lower --data.batch-size."
        )


def format_phases(*, host: Tensor, device: Tensor) -> str:
    """A table with a line for each phase: mean time, share of the step on each rank, and meaning.

    Args:
        host: milliseconds by rank and phase, (W, P) for W ranks and P phases.
        device: milliseconds of GPU kernels, (W, P); if all are 0, the table has no column for them.

    Example::

        # phase        ms    rank 0    rank 1  what
        # ---------  ----  --------  --------  -------------------------------------------------------
        # input      0.41      1.2%      1.4%  waiting for the next batch, and its copy to the device
    """
    shares = host / host.sum(dim=1, keepdim=True)
    if len(shares) <= _MAX_RANK_COLUMNS:
        columns = {f"rank {rank}": share for rank, share in enumerate(shares)}
    else:
        columns = {"mean": shares.mean(dim=0), "least": shares.amin(dim=0), "most": shares.amax(dim=0)}
    milliseconds = {"ms": host.mean(dim=0)} | ({"GPU ms": device.mean(dim=0)} if device.any() else {})
    lines = [
        [
            phase,
            *(f"{values[i]:.2f}" for values in milliseconds.values()),
            *(f"{values[i]:.1%}" for values in columns.values()),
            meaning,
        ]
        for i, (phase, meaning) in enumerate(PHASES.items())
    ]
    # The least and the most are those of different ranks, so they do not add up.
    totals = ["" if name in ("least", "most") else f"{values.sum():.1%}" for name, values in columns.items()]
    total = ["step", *(f"{values.sum():.2f}" for values in milliseconds.values()), *totals, ""]
    names = ["phase", *milliseconds, *columns, "what"]
    aligned = ["left", *["right"] * (len(names) - 2), "left"]
    return tabulate([*lines, total], names, disable_numparse=True, colalign=aligned)


def format_operations(times: StepTimes) -> str:
    """A table with a line for each of the operations and ranges with the most own time.

    Example::

        # operation                ms    share    calls
        # --------------------  -----  -------  -------
        # aten::addmm           12.10    31.4%       34
    """
    listed = list(times.operations.items())[:_MAX_OPERATIONS]
    has_device = any(spent.device for _, spent in listed)
    step = sum(spent.host for spent in times.phases.values())
    lines = [
        [
            name,
            f"{spent.host:.2f}",
            *([f"{spent.device:.2f}"] if has_device else []),
            f"{spent.host / step:.1%}",
            f"{spent.calls:g}",
        ]
        for name, spent in listed
    ]
    names = ["operation", "ms", *(["GPU ms"] if has_device else []), "share", "calls"]
    aligned = ["left", *["right"] * (len(names) - 1)]
    return tabulate(lines, names, disable_numparse=True, colalign=aligned)
