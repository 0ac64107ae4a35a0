"""The settings of each model before it is compared: the best cell of a small grid, by the validation split alone."""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from stem_torchrec.comparison.runs import Part, read_results, train_part
from stem_torchrec.config import TrainConfig
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import TimeLeft, log_rank0, progress_bar
from stem_torchrec.training.watched_metric import WatchedMetric

SCORE_FILE = "score.json"
"""The validation score in a cell's run folder; written last, so it marks a cell that has been tried."""


@dataclass(frozen=True)
class Cell:
    """One setting of the grid."""

    learning_rate: float
    """Learning rate of the tables."""
    embedding_l2: float
    """L2 regularization of the embeddings."""

    @property
    def name(self) -> str:
        """Its name in messages and its subfolder."""
        return f"learning_rate={self.learning_rate:g},embedding_l2={self.embedding_l2:g}"

    def configure(self, config: TrainConfig) -> TrainConfig:
        """`config` with this setting."""
        return replace(
            config,
            sparse=replace(config.sparse, learning_rate=self.learning_rate),
            model=replace(config.model, embedding_l2=self.embedding_l2),
        )


@dataclass(frozen=True)
class _Score:
    """What SCORE_FILE holds."""

    score: float | None
    """None if the run diverged."""
    valid: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    """Metrics of the best evaluation, as `to_json` returns them."""


@dataclass(frozen=True)
class Grid:
    """The cells that every part tries, with one seed."""

    learning_rates: Sequence[float]
    embedding_l2: Sequence[float]
    seed: int
    folder: Path
    """Holds a run folder for each part and cell."""

    def cells(self) -> list[Cell]:
        """All cells."""
        return [Cell(rate, l2) for rate, l2 in product(self.learning_rates, self.embedding_l2)]

    def run_folder(self, part: Part, cell: Cell) -> Path:
        """Where a part trains with a cell's setting."""
        return self.folder / part.name / cell.name

    def score(self, part: Part, cell: Cell) -> float | None:
        """The validation score, higher is better; minus infinity if the run diverged, None if it has not ended."""
        file = self.run_folder(part, cell) / SCORE_FILE
        if not file.exists():
            return None
        score: float | None = read_results(file, _Score)["score"]
        return -math.inf if score is None else score

    def untried(self, parts: Sequence[Part]) -> list[tuple[Part, Cell]]:
        """The parts and cells without a score."""
        return [(part, cell) for part in parts for cell in self.cells() if self.score(part, cell) is None]

    def best_cell(self, part: Part) -> Cell:
        """The cell with the best score, the first of equals; raises UserError if all diverged."""
        by_cell = {cell: self.score(part, cell) for cell in self.cells()}
        scores = {cell: -math.inf if score is None else score for cell, score in by_cell.items()}
        best = max(scores, key=scores.__getitem__)
        if scores[best] == -math.inf:
            raise UserError(f"{part.name} diverged with every value of the grid; give lower --learning-rates.")
        return best

    def rows(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """One row for each part and cell, with its score and whether it was chosen."""
        return [
            {"model": part.name, "learning_rate": cell.learning_rate, "embedding_l2": cell.embedding_l2,
             "score": self.score(part, cell), "chosen": cell == self.best_cell(part)}
            for part in parts
            for cell in self.cells()
        ]  # fmt: skip


def search_grid(
    grid: Grid, parts: Sequence[Part], *, config: TrainConfig, process: Process, ending: Event | None = None
) -> dict[Part, TrainConfig]:
    """Trains what has no score yet; returns for each part `config` with its best setting. All ranks call it.

    Args:
        grid: the cells.
        parts: all parts of the comparison.
        config: of the comparison; it names its labels.
        process: this rank.
        ending: see `train`.

    Raises UserError if a part diverged with every setting.
    """
    # Rank 0 decides what is left to do: a shared file system may show the other ranks fewer files.
    untried = from_first_rank(lambda: grid.untried(parts))
    with progress_bar(len(untried), "trial") as bar:
        left = TimeLeft(len(untried))
        for number, (part, cell) in enumerate(untried):
            log_rank0(f"\ntrial {number + 1} of {len(untried)}{left.after(number)}")
            _train_cell(grid, part, cell, config=config, process=process, ending=ending)
            bar.update()
    return from_first_rank(lambda: {part: grid.best_cell(part).configure(config) for part in parts})


def _train_cell(
    grid: Grid, part: Part, cell: Cell, *, config: TrainConfig, process: Process, ending: Event | None
) -> None:
    folder = grid.run_folder(part, cell)
    config = replace(cell.configure(part.configure(config)), seed=grid.seed, output_dir=str(folder))
    log_rank0(f"\n{part.name}, {cell.name}: {folder}")
    result: dict[str, Any] = {"score": None}
    try:
        metrics = train_part(config, process, ending=ending)
        score = WatchedMetric(config.train.metric, list(metrics)).score(metrics)
        result = {"score": None if math.isnan(score) else score, "valid": to_json(metrics)}
    except DivergedError as error:
        log_rank0(f"{part.name}, {cell.name}: {error}")
    gc.collect()
    from_first_rank(lambda: write_json(folder / SCORE_FILE, result))
