"""The settings of each model before it is compared: the best of a few, by the validation split alone.

They are the cells of a small grid, or with a budget as many random ones as each model may train.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from stem_torchrec.comparison.parts import Part
from stem_torchrec.comparison.runs import read_results, train_part
from stem_torchrec.config import TrainConfig
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.left_out import trained_or_left_out
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
class Budget:
    """How much each model tries, in place of all cells: the same for all, a set of single-task models being one."""

    first: Cell
    """The setting that is tried first."""
    runs: int | None = None
    """Settings."""
    minutes: float | None = None
    """Minutes of training after which no other setting begins."""


@dataclass(frozen=True)
class _Score:
    """What SCORE_FILE holds."""

    score: float | None
    """None if the cell is left out."""
    valid: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    """Metrics of the best evaluation, as `to_json` returns them."""
    seconds: float = 0.0
    """What the training took, since it was last interrupted; 0 if an earlier version trained it."""
    left_out: str = ""
    """Why the cell is left out, since this version."""
    lacks_memory: bool = False
    """See LeftOut."""

    @property
    def score_or_least(self) -> float:
        """The score, higher is better; minus infinity if the cell is left out."""
        return -math.inf if self.score is None else self.score


@dataclass(frozen=True)
class Grid:
    """The cells that every part tries, with one seed."""

    learning_rates: Sequence[float]
    embedding_l2: Sequence[float]
    seed: int
    folder: Path
    """Holds a run folder for each part and cell."""
    budget: Budget | None = None
    """Without one every part tries all cells."""

    def cells(self) -> Iterator[Cell]:
        """All cells; with a budget an endless series, the same for all parts: the first, then random ones."""
        if self.budget is None:
            yield from (Cell(rate, l2) for rate, l2 in product(self.learning_rates, self.embedding_l2))
            return
        yield self.budget.first
        generator = np.random.default_rng(self.seed)
        positive = [l2 for l2 in self.embedding_l2 if l2 > 0]
        while True:
            rate = _between(self.learning_rates, generator.random())
            # As often as the list has it, 0, which no logarithm reaches.
            none = generator.random() * len(self.embedding_l2) < len(self.embedding_l2) - len(positive)
            share = generator.random()
            yield Cell(rate, 0.0 if none or not positive else _between(positive, share))

    def run_folder(self, part: Part, cell: Cell) -> Path:
        """Where a part trains with a cell's setting."""
        return self.folder / part.name / cell.name

    def result(self, part: Part, cell: Cell) -> _Score | None:
        """What the training of a part with a cell's setting has come to; None if it has not ended."""
        file = self.run_folder(part, cell) / SCORE_FILE
        return _Score(**read_results(file, _Score)) if file.exists() else None

    def tried(self, part: Part) -> dict[Cell, _Score]:
        """The scores of the cells that a part has tried."""
        scores: dict[Cell, _Score] = {}
        for cell in self.cells():
            result = self.result(part, cell)
            if result is not None:
                scores[cell] = result
            elif self.budget is not None:
                break
            if self.budget is not None and len(scores) == self.budget.runs:
                break
        return scores

    def next_cell(self, part: Part, *, parts: int) -> Cell | None:
        """The cell that a part tries next; None if it has tried all, its budget is spent, or it lacks memory in one.

        Args:
            part: of a model.
            parts: number of parts of the model, which share its minutes.
        """
        runs, minutes = (self.budget.runs, self.budget.minutes) if self.budget else (None, None)
        seconds = 0.0
        for number, cell in enumerate(self.cells()):
            if number == runs or (minutes is not None and number and seconds >= 60 * minutes / parts):
                return None
            result = self.result(part, cell)
            if result is None:
                return cell
            if result.lacks_memory:
                # Every setting takes as much.
                return None
            seconds += result.seconds
        return None

    def best_cell(self, part: Part) -> Cell | None:
        """The cell with the best score, the first of equals; None if all are left out."""
        scores = {cell: each.score_or_least for cell, each in self.tried(part).items()}
        best = max(scores, key=scores.__getitem__)
        return None if scores[best] == -math.inf else best

    def left_out(self, part: Part, *, parts: int) -> str | None:
        """Why a part cannot be trained, once it has tried its cells and all are left out; see `next_cell`."""
        if self.next_cell(part, parts=parts) is not None or self.best_cell(part) is not None:
            return None
        first = next(iter(self.tried(part).values())).left_out or "no setting has a score; give lower --learning-rates"
        return f"{part.name} could not be tuned: {first}"

    def rows(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """One row for each part and cell, with its score and whether it was chosen."""
        return [
            {"model": part.name, "learning_rate": cell.learning_rate, "embedding_l2": cell.embedding_l2,
             "score": each.score_or_least, "chosen": cell == self.best_cell(part)}
            for part in parts
            for cell, each in self.tried(part).items()
        ]  # fmt: skip


def search_grid(
    grid: Grid, parts: Sequence[Part], *, config: TrainConfig, process: Process, ending: Event | None = None
) -> dict[Part, TrainConfig]:
    """Trains what has no score yet; returns for each part `config` with its best setting, without parts that have none.

    All ranks call it.

    Args:
        grid: the cells.
        parts: all parts of the comparison.
        config: of the comparison; it names its labels.
        process: this rank.
        ending: see `train`.
    """
    of_model = Counter(part.model for part in parts)
    for number, part in enumerate(parts):
        # Rank 0 decides what is left to do: a shared file system may show the other ranks fewer files.
        following = partial(grid.next_cell, part, parts=of_model[part.model])
        while (cell := from_first_rank(following)) is not None:
            log_rank0(f"\ntuning {part.name}, {number + 1} of {len(parts)}")
            _train_cell(grid, part, cell, config=config, process=process, ending=ending)
    best = from_first_rank(lambda: [grid.best_cell(part) for part in parts])
    return {part: cell.configure(config) for part, cell in zip(parts, best, strict=True) if cell is not None}


def _train_cell(
    grid: Grid, part: Part, cell: Cell, *, config: TrainConfig, process: Process, ending: Event | None
) -> None:
    folder = grid.run_folder(part, cell)
    config = replace(cell.configure(part.configure(config)), seed=grid.seed, output_dir=str(folder))
    log_rank0(f"\n{part.name}, {cell.name}: {folder}")
    begin = time.perf_counter()

    def write(result: _Score) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SCORE_FILE, asdict(replace(result, seconds=time.perf_counter() - begin)))

    metrics = trained_or_left_out(
        partial(train_part, config, process, ending=ending),
        process,
        name=f"{part.name}, {cell.name}",
        leave_out=lambda left_out: write(_Score(None, **asdict(left_out))),
    )
    if metrics is not None:
        score = WatchedMetric(config.train.metric, list(metrics)).score(metrics)
        from_first_rank(lambda: write(_Score(None if math.isnan(score) else score, to_json(metrics))))


def _between(values: Sequence[float], share: float) -> float:
    """A value between the ends of a list, by its share of their distance in logarithms, to 3 digits as names have it.

    Example::

        _between([0.01, 0.02, 1.0], 0.5)  # 0.1
    """
    low, high = math.log(min(values)), math.log(max(values))
    return float(f"{math.exp(low + share * (high - low)):.3g}")
