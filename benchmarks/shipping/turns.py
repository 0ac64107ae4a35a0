"""Blocks of steps of one run that take turns in shipping deltas and in shipping none, and what each of them took."""

import time
from dataclasses import dataclass, field

from stem_torchrec.runtime.process import from_first_rank
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.run_deltas import RunDeltas

from common.load import CpuTime


@dataclass
class Block:
    """Steps of a run on one rank."""

    kind: str
    """first: begins with the delta that has all rows; shipping: with one of changed rows; alone: ships none."""
    steps: int
    seconds: float
    cpu: float
    """CPU seconds of this rank, of all its threads."""
    busy: float
    """CPU seconds of all processes of the machine."""
    step_ms: list[float]
    """Of each step."""
    recording: float = 0.0
    """Seconds in which ids were recorded."""
    paused: float = 0.0
    """Seconds that the run stood still for the delta."""


@dataclass
class Turns(Callback):
    """In place of the deltas of a run, which it calls in every other block: first, alone, shipping, alone ...

    The delta of a block is shipped at its begin, and has what the shipping block before it has recorded.

    Args:
        deltas: of the run; ships nothing by itself.
        seconds: of a block. The steps before the first one tell how many it has.
        rounds: how many blocks ship changed rows; each is between two that ship nothing.
        warm: steps before the first block.
    """

    deltas: RunDeltas
    seconds: float
    rounds: int
    warm: int
    blocks: list[Block] = field(default_factory=list)
    """The last one is being measured."""

    def __post_init__(self) -> None:
        self._steps, self._due = 0, False
        self._last_step = self._began = time.perf_counter()
        self._warm_up: list[float] = []

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        """Records the ids in a block that ships; asks for a pause where a delta is due."""
        begin = time.perf_counter()
        if not self.blocks or self.blocks[-1].kind != "alone":
            self.deltas.after_step(loop, output)
        now = time.perf_counter()
        step_ms, self._last_step = 1000 * (now - self._last_step), now
        if not self.blocks:
            self._warm_up.append(step_ms)
            if len(self._warm_up) == self.warm:
                later = sorted(self._warm_up[self.warm // 2 :])
                self._steps = from_first_rank(lambda: max(10, int(1000 * self.seconds / later[len(later) // 2])))
                self._begin("first")
            return self._due
        block = self.blocks[-1]
        block.recording += now - begin
        block.step_ms.append(step_ms)
        if len(block.step_ms) == block.steps:
            self._end()
            if len(self.blocks) == 2 + 2 * self.rounds:
                loop.state.stopped = True
                return True
            self._begin("shipping" if block.kind == "alone" else "alone")
        return self._due

    def on_pause(self, loop: TrainLoop) -> None:
        """Ships the delta of the block."""
        if self._due:
            begin, self._due = time.perf_counter(), False
            self.deltas.ship(loop.state.step)
            self.blocks[-1].paused = time.perf_counter() - begin

    def _begin(self, kind: str) -> None:
        self._due = kind != "alone"
        self._began, self._cpu, self._busy = time.perf_counter(), time.process_time(), CpuTime.now().busy
        self.blocks.append(Block(kind, self._steps, 0.0, 0.0, 0.0, []))

    def _end(self) -> None:
        block = self.blocks[-1]
        block.seconds = time.perf_counter() - self._began
        block.cpu, block.busy = time.process_time() - self._cpu, CpuTime.now().busy - self._busy
