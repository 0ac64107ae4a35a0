"""Divides the time of a training step into phases, by the events of the profiler.

The own time of an event, without that of the events inside it, belongs to the innermost range that begins a phase.
TorchRec, FBGEMM and torch record these ranges (their names stand in `runtime.internals.profiler_ranges`):

    ProfilerStep#12                              other
    ├─ ## copy_batch_to_gpu 14 ##                input
    ├─ ## start_sparse_data_dist 13 ##           input dist
    ├─ ## forward 12 ##                          dense forward
    │  ├─ [lookup]_[...]_[table_wise]            lookup
    │  └─ [output_dist]_[...]_[table_wise]       output dist
    ├─ ## backward 12 ##                         dense backward
    │  ├─ All2All_Pooled_ReqBackward             output dist
    │  ├─ CppNode<SplitLookupFunction_...>       table backward
    │  └─ what follows the last such function    all-reduce
    └─ ## optimizer 12 ##                        dense optimizer

Only the training thread counts, because its time is that of the step. On CUDA, autograd has a thread of its own and the
training thread waits for it in the backward range; there the time of autograd's thread replaces that of the waiting.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from stem_torchrec.runtime.internals import profiler_ranges
from stem_torchrec.runtime.internals.profiler_ranges import AUTOGRAD_FUNCTION

PHASES: Mapping[str, str] = {
    "input": "waiting for the next batch, and its copy to the device",
    "input dist": "ids to the ranks of their tables",
    "lookup": "rows of the tables, pooled",
    "output dist": "pooled embeddings back, and their gradients there again",
    "dense forward": "the rest of the forward pass: experts, gates, towers, loss",
    "dense backward": "their backward pass",
    "table backward": "gradients of the tables, and the optimizer fused into it",
    "all-reduce": "gradients of experts, gates, towers and data_parallel tables",
    "dense optimizer": "the optimizers after the backward pass, and zero_grad",
    "other": "what is between these: schedule, losses, log",
}
"""The meaning of each phase, in the order of a step."""

_RANGES: Mapping[str, re.Pattern[str]] = {
    "input": profiler_ranges.INPUT,
    "input dist": profiler_ranges.INPUT_DIST,
    "lookup": profiler_ranges.LOOKUP,
    "output dist": profiler_ranges.OUTPUT_DIST,
    "dense forward": profiler_ranges.FORWARD,
    "dense backward": profiler_ranges.BACKWARD,
    "table backward": profiler_ranges.TABLE_BACKWARD,
    "all-reduce": profiler_ranges.ALL_REDUCE,
    "dense optimizer": profiler_ranges.OPTIMIZER,
    "other": profiler_ranges.STEP,
}
"""The names of the ranges that begin each phase."""


@dataclass
class Spent:
    """Time of a step, as means over the recorded steps."""

    host: float = 0.0
    """Milliseconds of the training thread."""

    device: float = 0.0
    """Milliseconds of the GPU kernels that were launched; 0 without a GPU."""

    calls: float = 0.0
    """Number of events."""


@dataclass(frozen=True)
class StepTimes:
    """The time of a step by phase and by operation."""

    phases: Mapping[str, Spent]
    """By phase, for all of PHASES; the host times add up to the time of a step."""

    operations: Mapping[str, Spent]
    """By name of an operation or range, without the events inside it; most GPU time first, then most host time."""


def step_times(events: Iterable[FunctionEvent]) -> StepTimes:
    """Divides the recorded steps into phases.

    Args:
        events: of `torch.profiler.profile.events()` with a schedule, which marks the steps.

    Example::

        step_times(profiler.events()).phases["lookup"]  # Spent(host=4.1, device=0.0, calls=6.0)
    """
    roots = [event for event in events if event.cpu_parent is None and event.device_type == DeviceType.CPU]
    steps = [event for event in roots if profiler_ranges.STEP.match(event.name)]
    assert steps, "the profiler marks the steps that it records"
    phases: dict[str, Spent] = {phase: Spent() for phase in PHASES}
    operations: dict[str, Spent] = defaultdict(Spent)

    def add(root: FunctionEvent, phase: str) -> None:
        for inner, name, host, device in _own_times(root, phase):
            for spent in (phases[inner], operations[re.sub(r" \d+ ##$", " ##", name)]):
                spent.host += host / len(steps) / 1000
                spent.device += device / len(steps) / 1000
                spent.calls += 1 / len(steps)

    for step in steps:
        add(step, "other")
        for root in roots:
            inside = step.time_range.start <= root.time_range.start and root.time_range.end <= step.time_range.end
            if inside and root.thread != step.thread and root.name.startswith(AUTOGRAD_FUNCTION):
                add(root, "dense backward")
                phases["dense backward"].host -= root.time_range.elapsed_us() / len(steps) / 1000
    # The step itself is not an operation.
    inside_steps = {name: spent for name, spent in operations.items() if not profiler_ranges.STEP.match(name)}
    ranked = sorted(inside_steps, key=lambda name: (-operations[name].device, -operations[name].host))
    return StepTimes(phases, {name: operations[name] for name in ranked})


def _own_times(event: FunctionEvent, phase: str) -> Iterator[tuple[str, str, float, float]]:
    """Phase, name, and own microseconds on host and device, of an event inside `phase` and of all events inside it."""
    phase = _phase(event.name) or phase
    own = event.time_range.elapsed_us() - _elapsed(event.cpu_children)
    # After its last function a backward pass waits for the all-reduce and copies the results.
    functions = [child for child in event.cpu_children if child.name.startswith(AUTOGRAD_FUNCTION)]
    done = math.inf
    if functions and _RANGES["dense backward"].match(event.name):
        done = max(function.time_range.end for function in functions)
        after = [child for child in event.cpu_children if child.time_range.start >= done]
        waiting = event.time_range.end - done - _elapsed(after)
        own -= waiting
        yield "all-reduce", "waiting for the all-reduce", waiting, 0.0
    yield phase, event.name, own, event.self_device_time_total
    for child in event.cpu_children:
        yield from _own_times(child, "all-reduce" if child.time_range.start >= done else phase)


def _elapsed(events: Iterable[FunctionEvent]) -> float:
    return sum(event.time_range.elapsed_us() for event in events)


def _phase(name: str) -> str | None:
    """The phase that a range of this name begins; None if it begins none."""
    name = name.removeprefix(AUTOGRAD_FUNCTION)
    return next((phase for phase, pattern in _RANGES.items() if pattern.match(name)), None)
