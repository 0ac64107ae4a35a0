"""Small sharded runs that ship deltas step by step, for tests."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stem_torchrec.checkpoints.saver import CheckpointSaver
from stem_torchrec.checkpoints.state import restore_state, training_state
from stem_torchrec.config import DeltaConfig, TrainConfig
from stem_torchrec.data.files import Columns
from stem_torchrec.deltas.began import Began
from stem_torchrec.deltas.chain import missing_deltas
from stem_torchrec.deltas.copied_run import applied_to_copy, apply_to_copy
from stem_torchrec.deltas.manifest import MANIFEST_FILE, manifest_text, read_delta
from stem_torchrec.training.loop import StepOutput
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.run_deltas import RunDeltas

from recovery.train_runs import tensors_of
from reference import COLUMNS, TABLES
from runs import MODEL, Run, batches_of_ranks, config_of, progress_after

Weights = dict[str, Tensor]


@dataclass
class Shipment:
    """A run with its deltas, in the folder `NAME` of a folder that has `NAME-deltas` as well."""

    folder: Path
    run: Run
    deltas: RunDeltas
    step: int = 0

    @classmethod
    def build(
        cls, folder: Path, name: str, config: TrainConfig, columns: Columns = COLUMNS, *,
        began: Began | None = None, run_id: str = "",
    ) -> "Shipment":  # fmt: skip
        """A new run, or one that was killed, of the id that is its name unless another is given."""
        run, meter = Run.build(config, columns), Meter(columns.labels)
        deltas = RunDeltas(
            config, folder / name, columns,
            run_id=run_id or name, model=run.model, meter=meter, check=lambda: None, began=began,
        )  # fmt: skip
        return cls(folder / name, run, deltas)

    def make_steps(self, count: int, *, missing: float = 0.3) -> None:
        """Steps on the batches of their numbers, which are the same rows on any number of ranks."""
        for _ in range(count):
            [batches] = batches_of_ranks(self.step + 1, dist.get_world_size(), missing=missing)[-1:]
            batch = batches[dist.get_rank()]
            [(losses, logits)] = self.run.train([batch])
            self.deltas.after_step(None, StepOutput(batch, losses, logits))
            self.step += 1

    def ship(self) -> None:
        """Ships a delta, and waits for it."""
        self.deltas.ship(self.step)
        self.deltas.wait()

    def save(self) -> str:
        """Writes a checkpoint; returns its path."""
        saver = CheckpointSaver(str(self.folder / "checkpoints"))
        meter = torch.zeros(2 * len(self.run.columns.labels) + 2)
        state = training_state(self.run.model, self.run.optimizer, meter, self.deltas.state())
        saver.save(state, progress_after(self.step), wait=True)
        saver.close()
        return str(self.folder / f"checkpoints/step-{self.step:09d}")

    def resume(self, path: str, step: int) -> None:
        """Takes a checkpoint, of any number of ranks."""
        tasks = len(self.run.columns.labels)
        restore_state(self.run.model, self.run.optimizer, path, step=step, tasks=tasks, same_ranks=False)
        self.deltas.restore(path, step)
        self.step = step


def shipping_config(
    folder: Path, name: str, optimizer: str, kind: str, *, layout: str = "split", **delta: Any
) -> TrainConfig:
    """Of a run of the tests' model that ships to `NAME-deltas`."""
    config = config_of(optimizer, kind, model=dataclasses.replace(MODEL, layout=layout))
    return dataclasses.replace(config, delta=DeltaConfig(steps=1000, out=str(folder / f"{name}-deltas"), **delta))


def apply(source: Path, copy: Path, until: int | None = None) -> int:
    """Applies what a copy lacks; returns how many deltas these were."""
    deltas = missing_deltas(source, applied_to_copy(copy), until=until, target=str(copy))
    if deltas:
        apply_to_copy(copy, deltas)
    return len(deltas)


def edit_delta(folder: Path, **fields: Any) -> None:
    """Changes fields of the manifest of a delta, with a checksum that fits."""
    manifest = dataclasses.replace(read_delta(folder).manifest, **fields)
    (folder / MANIFEST_FILE).write_text(manifest_text(manifest))


def weights_of_copy(copy: Path) -> Weights:
    """Every weight of a copy by its name in the model."""
    return {name.removeprefix("model.model."): value for name, value in tensors_of(copy / "best").items()}


def tables_of(weights: Weights) -> Weights:
    """The tables among weights."""
    return {name: weight for name, weight in weights.items() if name.startswith(TABLES)}


def same(one: Weights, other: Weights) -> bool:
    """Whether weights are the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
