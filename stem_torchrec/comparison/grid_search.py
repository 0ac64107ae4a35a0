"""The setting of each model before it is compared: the best of a few, by the validation split alone.

They are all that there is to choose from, or with a budget as many random ones as each model may train.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

from stem_torchrec.comparison.parts import Part
from stem_torchrec.comparison.runs import read_results, train_part
from stem_torchrec.comparison.settings import Listed, Lists, Setting, Space
from stem_torchrec.config import TrainConfig
from stem_torchrec.metrics.multi_task import to_json
from stem_torchrec.runtime.paths import write_json
from stem_torchrec.runtime.process import Process, from_first_rank
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.training.left_out import trained_or_left_out
from stem_torchrec.training.watched_metric import WatchedMetric

SCORE_FILE = "score.json"
"""The validation score in a setting's run folder; written last, so it marks a setting that has been tried."""
_CHECKED = 100
"""Settings of a file that are checked before anything is trained, where there is no number of runs."""
_TOO_LARGE = 10
"""Settings of a file in a row without enough memory after which no other is tried."""


@dataclass(frozen=True)
class Budget:
    """How much each model tries, in place of all settings: the same for all, a set of single-task models being one."""

    first: Setting
    """The setting that is tried first: that of the other options."""
    runs: int | None = None
    """Settings."""
    minutes: float | None = None
    """Minutes of training after which no other setting begins."""


@dataclass(frozen=True)
class _Score:
    """What SCORE_FILE holds."""

    score: float | None
    """None if the setting is left out."""
    valid: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    """Metrics of the best evaluation, as `to_json` returns them."""
    seconds: float = 0.0
    """What the training took, since it was last interrupted; 0 if an earlier version trained it."""
    left_out: str = ""
    """Why the setting is left out, since this version."""
    lacks_memory: bool = False
    """See LeftOut."""

    @property
    def score_or_least(self) -> float:
        """The score, higher is better; minus infinity if the setting is left out."""
        return -math.inf if self.score is None else self.score


@dataclass(frozen=True)
class Grid:
    """The settings that every part tries, with one seed."""

    choices: Lists | Space | Listed
    seed: int
    folder: Path
    """Holds a run folder for each part and setting."""
    budget: Budget | None = None
    """Without one every part tries all settings."""

    def settings(self) -> Iterator[Setting]:
        """All settings, the same for all parts; with a budget the first, then random ones, as many as there are."""
        if self.budget is None:
            yield from self.choices.all()
            return
        yield self.budget.first
        yield from (setting for setting in self.choices.drawn(self.seed) if setting != self.budget.first)

    def to_check(self) -> list[Setting]:
        """The settings that a model may refuse: the first ones of a file; none of lists, which have rates and L2."""
        if isinstance(self.choices, Lists):
            return []
        return [*islice(self.settings(), (self.budget and self.budget.runs) or _CHECKED)]

    def run_folder(self, part: Part, setting: Setting) -> Path:
        """Where a part trains with a setting."""
        return self.folder / part.name / setting.name

    def result(self, part: Part, setting: Setting) -> _Score | None:
        """What the training of a part with a setting has come to; None if it has not ended."""
        file = self.run_folder(part, setting) / SCORE_FILE
        return _Score(**read_results(file, _Score)) if file.exists() else None

    def tried(self, part: Part) -> dict[Setting, _Score]:
        """The scores of the settings that a part has tried."""
        scores: dict[Setting, _Score] = {}
        for setting in self.settings():
            result = self.result(part, setting)
            if result is not None:
                scores[setting] = result
            elif self.budget is not None:
                break
            if self.budget is not None and len(scores) == self.budget.runs:
                break
        return scores

    def next_setting(self, part: Part, *, parts: int) -> Setting | None:
        """The setting that a part tries next; None if it has tried all, its budget is spent, or it lacks memory.

        Args:
            part: of a model.
            parts: number of parts of the model, which share its minutes.
        """
        runs, minutes = (self.budget.runs, self.budget.minutes) if self.budget else (None, None)
        # Whatever its rate and its L2, a model takes as much.
        too_large = 1 if isinstance(self.choices, Lists) else _TOO_LARGE
        seconds, lacking = 0.0, 0
        for number, setting in enumerate(self.settings()):
            if number == runs or (minutes is not None and number and seconds >= 60 * minutes / parts):
                return None
            result = self.result(part, setting)
            if result is None:
                return setting
            lacking = lacking + 1 if result.lacks_memory else 0
            if lacking == too_large:
                return None
            seconds += result.seconds
        return None

    def best_setting(self, part: Part) -> Setting | None:
        """The setting with the best score, the first of equals; None if all are left out."""
        return _best(self.tried(part))

    def left_out(self, part: Part, *, parts: int) -> str | None:
        """Why a part cannot be trained, once it has tried its settings and all are left out; see `next_setting`."""
        if self.next_setting(part, parts=parts) is not None or self.best_setting(part) is not None:
            return None
        first = next(iter(self.tried(part).values())).left_out or "no setting has a score; give lower rates"
        return f"{part.name} could not be tuned: {first}"

    def rows(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
        """One row for each part and setting, with its score and whether it was chosen."""
        by_part = {part: self.tried(part) for part in parts}
        best = {part: _best(tried) for part, tried in by_part.items() if tried}
        columns = dict.fromkeys(name for tried in by_part.values() for setting in tried for name in setting.by_column)
        return [
            {
                "model": part.name,
                # Without a value it is that of the model, or of the command line.
                **{column: setting.by_column.get(column) for column in columns},
                "score": each.score_or_least,
                "chosen": setting == best[part],
            }
            for part, tried in by_part.items()
            for setting, each in tried.items()
        ]


def _best(tried: Mapping[Setting, _Score]) -> Setting | None:
    best = max(tried, key=lambda setting: tried[setting].score_or_least)
    return None if tried[best].score_or_least == -math.inf else best


def search_grid(
    grid: Grid, parts: Sequence[Part], *, config: TrainConfig, process: Process, ending: Event | None = None
) -> dict[Part, Part]:
    """Trains what has no score yet; returns for each part the one with its best setting, without parts that have none.

    All ranks call it.

    Args:
        grid: the settings.
        parts: all parts of the comparison.
        config: of the comparison; it names its labels.
        process: this rank.
        ending: see `train`.
    """
    of_model = Counter(part.model for part in parts)
    for number, part in enumerate(parts):
        # Rank 0 decides what is left to do: a shared file system may show the other ranks fewer files.
        following = partial(grid.next_setting, part, parts=of_model[part.model])
        while (setting := from_first_rank(following)) is not None:
            log_rank0(f"\ntuning {part.name}, {number + 1} of {len(parts)}")
            _train_setting(grid, part, setting, config=config, process=process, ending=ending)
    best = from_first_rank(lambda: [grid.best_setting(part) for part in parts])
    return {part: replace(part, setting=each) for part, each in zip(parts, best, strict=True) if each is not None}


def _train_setting(
    grid: Grid, part: Part, setting: Setting, *, config: TrainConfig, process: Process, ending: Event | None
) -> None:
    folder = grid.run_folder(part, setting)
    of_setting = replace(part, setting=setting)
    config = replace(of_setting.configure(config), seed=grid.seed, output_dir=str(folder))
    log_rank0(f"\n{of_setting.place}: {folder}")
    begin = time.perf_counter()

    def write(result: _Score) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SCORE_FILE, asdict(replace(result, seconds=time.perf_counter() - begin)))

    metrics = trained_or_left_out(
        partial(train_part, config, process, ending=ending),
        process,
        name=of_setting.place,
        leave_out=lambda left_out: write(_Score(None, **asdict(left_out))),
    )
    if metrics is not None:
        score = WatchedMetric(config.train.metric, list(metrics)).score(metrics)
        from_first_rank(lambda: write(_Score(None if math.isnan(score) else score, to_json(metrics))))
