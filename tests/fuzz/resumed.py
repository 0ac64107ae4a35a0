"""A run that is interrupted after some steps and resumed, beside the same run without interruption.

resume compare STEPS OPTION...   both, and their weights and metrics, which must be the same bits
resume leave STEPS OPTION...     the whole run in run/, and the interrupted one in paused/
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event

import torch
from torch import Tensor

from stem_torchrec.config import TrainConfig
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.errors import Interrupted
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.loop import StepOutput, TrainLoop
from stem_torchrec.training.trainer import Trainer


class EndAfter(Callback):
    """Asks a run to end after a number of steps, as a signal does."""

    def __init__(self, steps: int, ending: Event) -> None:
        self._steps, self._ending = steps, ending

    def after_step(self, loop: TrainLoop, output: StepOutput) -> bool:
        if loop.state.step >= self._steps:
            self._ending.set()
        return self._ending.is_set()


def train_whole(config: TrainConfig, process: Process) -> dict[str, Tensor]:
    """The weights after training to the end."""
    trainer = Trainer(config, process)
    trainer.run()
    return weights(trainer)


def train_until(steps: int, config: TrainConfig, process: Process) -> bool:
    """Trains until the run is asked to end after some steps; returns False if it has ended by then."""
    ending = Event()
    trainer = Trainer(config, process, callbacks=[EndAfter(steps, ending)], ending=ending)
    try:
        trainer.run()
    except Interrupted:
        trainer.close()
        return True
    return False


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor of the model on this rank."""
    return {
        f"{name} {i}": part.detach().clone()
        for name, value in trainer.model.state_dict().items()
        for i, part in enumerate(
            [shard.tensor for shard in value.local_shards()] if hasattr(value, "local_shards") else [value]
        )
    }


def differences(expected: Mapping[str, Tensor], resumed: Mapping[str, Tensor], whole: Path, parts: Path) -> list[str]:
    """The weights and files that a resumed run does not share with the whole one, bit for bit.

    Args:
        expected: the weights of the whole run.
        resumed: those of the resumed run.
        whole: the folder of the whole run.
        parts: that of the resumed run.
    """
    different = [
        name
        for name in sorted({*expected, *resumed})
        if not (name in expected and name in resumed and torch.equal(expected[name], resumed[name]))
    ]
    if (whole / "metrics.json").read_text() != (parts / "metrics.json").read_text():
        different.append("metrics.json")
    return different


def main() -> None:
    """Runs what the command line asks for; ends with status 1 if the runs differ."""

    def run() -> None:
        what, steps, *options = sys.argv[1:]
        config = config_from_command_line(options)
        whole, parts = ("run", "paused") if what == "leave" else ("whole", "parts")
        with join_process_group(timeout=20) as process:
            expected = train_whole(replace(config, output_dir=whole), process)
            interrupted = train_until(int(steps), replace(config, output_dir=parts), process)
            if what == "leave" or not interrupted:
                return
            if not list(Path(parts).glob("checkpoints/step-*")):
                sys.exit("the interrupted run has no checkpoint")
            resumed = train_whole(replace(config, output_dir=parts), process)
        differing = differences(expected, resumed, Path(whole), Path(parts))
        if differing:
            print("the resumed run differs in", differing, file=sys.stderr)
            sys.exit(1)

    run_main(run)
