"""What each model is set to before it is compared: the best cell of a small grid, by the validation split alone."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from stem_torchrec.comparison.runs import with_model
from stem_torchrec.config import TrainConfig
from stem_torchrec.loop import EarlyStopping
from stem_torchrec.metrics import to_json
from stem_torchrec.process import Process, from_first_rank
from stem_torchrec.progress import say
from stem_torchrec.run_folder import write_json
from stem_torchrec.train import train

SCORE_FILE = "score.json"
"""Of a cell's run folder: what validation said; there when the run has ended."""


@dataclass(frozen=True)
class Cell:
    """Values to try."""

    learning_rate: float
    """Of the tables."""
    embedding_l2: float

    @property
    def name(self) -> str:
        """Of its folder, and in the report."""
        return f"learning_rate={self.learning_rate:g},embedding_l2={self.embedding_l2:g}"

    def of(self, config: TrainConfig) -> TrainConfig:
        """`config` with these values."""
        return replace(
            config,
            sparse=replace(config.sparse, learning_rate=self.learning_rate),
            model=replace(config.model, embedding_l2=self.embedding_l2),
        )


@dataclass(frozen=True)
class Grid:
    """The cells that every model tries, with one seed."""

    learning_rates: Sequence[float]
    embedding_l2: Sequence[float]
    seed: int
    folder: Path
    """Holds a run folder for each model and cell."""

    def cells(self) -> list[Cell]:
        """All of them."""
        return [Cell(rate, l2) for rate, l2 in product(self.learning_rates, self.embedding_l2)]

    def score(self, model: str, cell: Cell) -> dict[str, Any] | None:
        """What validation said of a cell, if it has been tried: its score, higher is better, and the metrics."""
        file = self.folder / model / cell.name / SCORE_FILE
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def missing(self, models: Sequence[str]) -> list[tuple[str, Cell]]:
        """The models and cells that have not been tried."""
        return [(model, cell) for model in models for cell in self.cells() if self.score(model, cell) is None]

    def choose(self, model: str) -> Cell:
        """The best cell of a model, the first of equals."""
        return max(self.cells(), key=lambda cell: (self.score(model, cell) or {})["score"])

    def rows(self, models: Sequence[str]) -> list[dict[str, Any]]:
        """A line for each model and cell."""
        return [
            {"model": model, "learning_rate": cell.learning_rate, "embedding_l2": cell.embedding_l2,
             "score": (self.score(model, cell) or {})["score"], "chosen": cell == self.choose(model)}
            for model in models
            for cell in self.cells()
        ]  # fmt: skip


def try_cell(grid: Grid, model: str, cell: Cell, base: TrainConfig, process: Process) -> None:
    """Trains a model with a cell's values and keeps what validation says; all ranks call it."""
    folder = grid.folder / model / cell.name
    from_first_rank(lambda: shutil.rmtree(folder, ignore_errors=True))
    config = replace(cell.of(with_model(base, model)), seed=grid.seed, output_dir=str(folder))
    say(f"\n{model}, {cell.name}: {folder}")
    metrics = train(config, process)
    score = EarlyStopping(config.train.metric, None, list(metrics)).score(metrics)
    if process.is_first:
        write_json(folder / SCORE_FILE, {"score": score, "valid": to_json(metrics)})
    # Nobody chooses before the file is there.
    from_first_rank(lambda: None)


def chosen_configs(grid: Grid, base: TrainConfig, models: Sequence[str]) -> Mapping[str, TrainConfig]:
    """`base` as each model is to train it."""
    return {model: grid.choose(model).of(base) for model in models}
