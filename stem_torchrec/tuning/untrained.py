"""Settings that a run refuses, found without training: single ones, and a space that has no other."""

import io
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any

import optuna

from stem_torchrec.runtime.errors import NoMemoryError, UserError, system_cause
from stem_torchrec.runtime.memory import naming_lack_of_memory
from stem_torchrec.runtime.process import Process, join_process_group
from stem_torchrec.training.built_run import BuiltRun
from stem_torchrec.tuning.search_space import Search

SETTINGS = 30
"""Refused settings after which a space counts as one without any that can be trained."""
_DRAWS = 10 * SETTINGS
"""Draws to find as many different ones, of a small space all of them."""


def check_space(search: Search, folder: Path) -> None:
    """Raises UserError if every setting of a space is refused; trains and writes nothing.

    It builds one setting after the other, in a random order, as trials do, until one is not refused: in most spaces
    the first. So a wrong option, or options that never go together, end the search with a sentence before it begins.

    Args:
        search: what `resolve_log` returns.
        folder: of the search, which need not exist.
    """
    refusals: list[UserError] = []
    # A process group of its own, as for a trial.
    with join_process_group(alone=True) as process:
        for choices in _settings(search):
            refusal = _refusal(search, choices, folder, process)
            if refusal is None:
                return
            refusals.append(refusal)
    first = refusals[0]
    if len({str(refusal) for refusal in refusals}) == 1:
        raise first
    raise UserError(f"none of {len(refusals)} settings that the space makes can be trained; the first: {first}")


def is_refusal(error: UserError) -> bool:
    """Whether an error before the first step is about the setting: not about a row, a disk, a launcher or damage."""
    return (type(error) is UserError or isinstance(error, NoMemoryError)) and system_cause(error) is None


def _settings(search: Search) -> list[Mapping[str, Any]]:
    """Different settings of the space at random, the same on all ranks: SETTINGS, or as many as it makes."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    settings: list[Mapping[str, Any]] = []
    for _ in range(_DRAWS):
        choices = study.ask(search.space).params
        if choices not in settings:
            settings.append(choices)
        if len(settings) == SETTINGS:
            break
    return settings


def _refusal(search: Search, choices: Mapping[str, Any], folder: Path, process: Process) -> UserError | None:
    """Why a setting cannot be trained, or None; other errors are raised."""
    with redirect_stdout(io.StringIO()):
        try:
            with naming_lack_of_memory():
                # In a folder that no trial has.
                run = BuiltRun.build(search.run_config(choices, folder / "untrained"), process)
        except UserError as error:
            if not is_refusal(error):
                raise
            # Without frames, which keep what was built.
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)
        with closing(run.data):
            return None
