"""The process of one rank of a run whose blocks take turns; rank 0 writes what all have measured to a file."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch.distributed as dist
from annotated_types import Interval

from stem_torchrec.config import parse_known_arguments
from stem_torchrec.runtime.command import run_main
from stem_torchrec.runtime.process import join_process_group
from stem_torchrec.training.configuration import config_from_command_line
from stem_torchrec.training.open_fields import with_open_fields
from stem_torchrec.training.run_deltas import RunDeltas
from stem_torchrec.training.run_start import with_data_folder
from stem_torchrec.training.trainer import Trainer

from shipping.turns import Turns


@dataclass(frozen=True)
class TurnsConfig:
    """What a rank measures; all other options are those of train.py."""

    result: str = ""
    """The file."""
    block_seconds: Annotated[float, Interval(gt=0, le=1e6)] = 60.0
    """Of a block."""
    rounds: Annotated[int, Interval(ge=1, le=10**6)] = 3
    """How many blocks ship changed rows."""
    warm: Annotated[int, Interval(ge=10, le=10**6)] = 200
    """Steps before the first block."""


def measure_turns(turns: TurnsConfig, options: Sequence[str]) -> None:
    """Trains until all blocks are measured."""
    with join_process_group() as process:
        config, path = with_data_folder(config_from_command_line(options))
        trainer = Trainer(with_open_fields(config, path, process), process)
        deltas, callbacks = trainer.checkpoints.deltas, trainer.loop.callbacks
        assert isinstance(deltas, RunDeltas)
        measured = Turns(deltas, turns.block_seconds, turns.rounds, turns.warm)
        callbacks[callbacks.index(deltas)] = measured
        trainer.loop.run()
        deltas.wait()
        of_ranks: list[Any] = [None] * process.world_size
        dist.all_gather_object(of_ranks, [dataclasses.asdict(block) for block in measured.blocks])
        trainer.close()
        if process.rank == 0:
            Path(turns.result).write_text(json.dumps(of_ranks))


def main() -> None:
    """Measures what the command line asks for."""
    measure_turns(*parse_known_arguments(TurnsConfig()))


if __name__ == "__main__":
    run_main(main)
