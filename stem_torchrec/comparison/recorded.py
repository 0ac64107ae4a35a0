"""The options of a comparison in its folder: what all its runs are trained with, so that no two comparisons mix."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from stem_torchrec.comparison.grid_search import SCORE_FILE, Grid
from stem_torchrec.comparison.options import Request
from stem_torchrec.comparison.parts import Part
from stem_torchrec.comparison.settings import Listed, Space, setting_of
from stem_torchrec.comparison.variants import RECIPE
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import what_is_trained
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.models.table import MODELS
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import load_config, with_trained_options
from stem_torchrec.training.open_fields import filled_in, open_fields_of
from stem_torchrec.training.recorded_options import differences, write_or_check
from stem_torchrec.training.run_folder import CONFIG_FILE

COMPARISON_FILE, VARIANTS_FOLDER = "comparison.yaml", "variants"


def record_options(request: Request, world_size: int) -> None:
    """Writes comparison.yaml, or checks that it records the same options, so that no folder mixes two comparisons.

    Options that change no result are left out, and those that the file lacks have their defaults; a run of each model
    confirms it. Each variant has a file of its own, so that others may be added. Raises UserError for a folder of
    another comparison, or one that cannot be written.
    """
    folder, grid = Path(request.config.out), request.grid
    options = {
        "ranks": world_size,
        "split": request.config.split,
        "log": dict(request.log),
        "tuned": _tuned(grid) if grid else None,
        "train": to_dict(replace(what_is_trained(request.train), seed=0)),
    }
    write_or_check(
        folder / COMPARISON_FILE,
        options,
        begun=any(folder.glob("runs/*/*")) or any(folder.glob("tuning/*/*")),
        refusal=f"{folder} holds a comparison with other options or of another log",
        fix=f"see {COMPARISON_FILE} in it, and give another --out, or the same options on as many ranks. Models and "
        "seeds may be added",
        as_of_now=with_trained_options,
        confirm=partial(_check_trained, request),
    )
    for name, variant in request.variants.items():
        file = folder / VARIANTS_FOLDER / f"{name}.yaml"
        if name not in MODELS:
            write_or_check(
                file,
                {
                    "options": dict(variant.options),
                    "alone": variant.alone,
                    **({RECIPE: variant.recipe} if variant.recipe else {}),
                },
                # Of runs without this file, as earlier versions made some, their own options tell.
                begun=file.exists() and (any(folder.glob(f"runs/{name}/*")) or any(folder.glob(f"tuning/{name}/*"))),
                refusal=f"{variant.place}: {folder} holds runs of {name} with other options",
                fix=f"see {VARIANTS_FOLDER}/{name}.yaml in it, and give the model another name, or another --out",
            )


def _tuned(grid: Grid) -> dict[str, Any]:
    """What is tuned, in comparison.yaml."""
    if isinstance(grid.choices, Space):
        choices: dict[str, Any] = {"space": {name: repr(each) for name, each in grid.choices.distributions.items()}}
    elif isinstance(grid.choices, Listed):
        choices = {"settings": [dict(setting.choices) for setting in grid.choices.settings]}
    elif grid.budget is None:
        choices = {"cells": [setting.name for setting in grid.settings()]}
    else:
        lists = grid.choices
        choices = {"learning_rates": sorted(lists.learning_rates), "embedding_l2": sorted(lists.embedding_l2)}
    if grid.budget is not None:
        choices["budget"] = {**vars(grid.budget), "first": grid.budget.first.by_column}
    return {"seed": grid.seed, **choices}


def _check_trained(request: Request) -> None:
    """Raises UserError where a run was trained with other options than these, whatever comparison.yaml tells.

    So a file that has lost lines lets no runs be mixed. One run of a part is read, as all of them were trained with the
    same options.
    """
    for part in (part for parts in request.parts().values() for part in parts):
        for folder, seed in _done(request, part):
            saved = load_config(str(folder / CONFIG_FILE))
            expected = replace(part.configure(request.train), seed=seed)
            if request.grid is not None:
                expected = setting_of(saved, request.grid.choices.options).configure(expected)
            expected = filled_in(expected, open_fields_of(saved))
            if unlike := next(_differences(saved, expected), None):
                raise UserError(
                    f"{folder} was trained with other options, where {unlike}; give another --out, or the same options."
                )
            break


def _done(request: Request, part: Part) -> Iterator[tuple[Path, int]]:
    """Folders of the trainings of a part that have ended, with their seeds: of its runs, then of its settings."""
    for run in request.runs:
        folder = run.folder / part.labels[0] if part.alone else run.folder
        if run.model == part.model and run.done and (folder / CONFIG_FILE).exists():
            yield folder, run.seed
    if request.grid is not None:
        for score in sorted((request.grid.folder / part.name).glob(f"*/{SCORE_FILE}")):
            if (score.parent / CONFIG_FILE).exists():
                yield score.parent, request.grid.seed


def _differences(saved: TrainConfig, expected: TrainConfig) -> Iterator[str]:
    before, now = (to_dict(what_is_trained(each)) for each in (saved, expected))
    yield from differences(before, now)
