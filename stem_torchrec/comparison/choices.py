"""What each model is set to before it is compared: the best cell of a small grid, by the validation split alone."""

import gc
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

from stem_torchrec.comparison.runs import Part, train_part
from stem_torchrec.config import TrainConfig
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.errors import DivergedError, UserError
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.run_folder import write_json
from stem_torchrec.training.watched_metric import WatchedMetric

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
    """The cells that every part tries, with one seed."""

    learning_rates: Sequence[float]
    embedding_l2: Sequence[float]
    seed: int
    folder: Path
    """Holds a run folder for each part and cell."""

    def cells(self) -> list[Cell]:
        """All of them."""
        return [Cell(rate, l2) for rate, l2 in product(self.learning_rates, self.embedding_l2)]

    def score(self, part: Part, cell: Cell) -> float | None:
        """What validation said of a cell, if it has been tried; higher is better, and minus infinity a divergence."""
        file = self.folder / part.name / cell.name / SCORE_FILE
        if not file.exists():
            return None
        score: float | None = json.loads(file.read_text())["score"]
        return -math.inf if score is None else score

    def missing(self, parts: Sequence[Part]) -> list[tuple[Part, Cell]]:
        """The parts and cells that have not been tried."""
        return [(part, cell) for part in parts for cell in self.cells() if self.score(part, cell) is None]

    def choose(self, part: Part) -> Cell:
        """The best cell of a part, the first of equals; raises UserError where all diverged."""
        tried = {cell: self.score(part, cell) for cell in self.cells()}
        scores = {cell: -math.inf if score is None else score for cell, score in tried.items()}
        best = max(scores, key=scores.__getitem__)
        if scores[best] == -math.inf:
            raise UserError(
                f"no value of the grid trains {part.name} to predictions that are numbers; lower the rates."
            )
        return best

    def rows(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """A line for each part and cell."""
        return [
            {"model": part.name, "learning_rate": cell.learning_rate, "embedding_l2": cell.embedding_l2,
             "score": self.score(part, cell), "chosen": cell == self.choose(part)}
            for part in parts
            for cell in self.cells()
        ]  # fmt: skip


def try_cell(
    grid: Grid, part: Part, cell: Cell, base: TrainConfig, process: Process, *, ending: Event | None = None
) -> None:
    """Trains a part with a cell's values and keeps what validation says; all ranks call it. See `train_and_test`."""
    folder = grid.folder / part.name / cell.name
    config = replace(cell.of(part.of(base)), seed=grid.seed, output_dir=str(folder))
    log_rank0(f"\n{part.name}, {cell.name}: {folder}")
    found: dict[str, Any] = {"score": None}
    try:
        metrics = train_part(config, process, ending=ending)
        score = WatchedMetric(config.train.metric, list(metrics)).score(metrics)
        found = {"score": score, "valid": to_json(metrics)}
    except DivergedError as error:
        log_rank0(f"{part.name}, {cell.name}: {error}")
    gc.collect()
    from_first_rank(lambda: write_json(folder / SCORE_FILE, found))
