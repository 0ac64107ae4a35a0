"""What `--tune` chooses from, by the command line: the two lists, or the file of `--space`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stem_torchrec.comparison.compare_config import CompareConfig
from stem_torchrec.comparison.grid_search import Budget, Grid
from stem_torchrec.comparison.settings import Listed, Lists, Setting, Space, setting_of
from stem_torchrec.comparison.variants import ARCH, SPACES, Variant, option_of_model
from stem_torchrec.config import TrainConfig
from stem_torchrec.config.yaml_text import read_yaml
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.training.configuration import with_values
from stem_torchrec.tuning.search_space import to_space


def grid_of(config: CompareConfig, train: TrainConfig, variants: Sequence[Variant], seed: int) -> Grid | None:
    """What is tuned, None without `--tune`.

    Args:
        config: the options of the comparison.
        train: those of train.py.
        variants: the models.
        seed: the one that settings are tried with.

    Raises UserError for options of `--tune` that make no sense, or that some model does not have or sets itself.
    """
    if not config.tune:
        if config.learning_rates or config.embedding_l2 or config.space:
            raise UserError("--learning-rates, --embedding-l2 and --space are what --tune chooses from; add --tune.")
        if config.tune_runs or config.tune_minutes:
            raise UserError("--tune-runs and --tune-minutes are the budget of --tune; add --tune.")
        return None
    if config.tune_runs and config.tune_minutes:
        raise UserError("--tune-runs and --tune-minutes are two budgets; leave one of them out.")
    has_budget = bool(config.tune_runs or config.tune_minutes)
    choices: Lists | Space | Listed
    if config.space:
        choices, first = _of_file(config, train, variants, has_budget), Setting()
    else:
        choices = _lists(config, train, has_budget)
        first = setting_of(train, choices.options)
    for each in variants:
        if (option := each.sets(*choices.options)) is not None:
            raise UserError(f"{each.place}: {option} is chosen by --tune; leave one of both out.")
    budget = Budget(first, config.tune_runs, config.tune_minutes) if has_budget else None
    return Grid(choices, seed, Path(config.out) / "tuning", budget)


def _lists(config: CompareConfig, train: TrainConfig, has_budget: bool) -> Lists:
    rates = config.learning_rates or tuple(factor * train.sparse.learning_rate for factor in (0.5, 1.0, 2.0))
    if has_budget and min(rates) <= 0:
        raise UserError(
            f"--learning-rates has {min(rates):g}, but with a budget rates are drawn above 0; leave it out."
        )
    return Lists(rates, config.embedding_l2 or tuple(sorted({0.0, 0.1, train.model.embedding_l2})))


def _of_file(
    config: CompareConfig, train: TrainConfig, variants: Sequence[Variant], has_budget: bool
) -> Space | Listed:
    """The space or the settings of `--space`, whose options are those of every model."""
    if config.learning_rates or config.embedding_l2:
        raise UserError("--space takes the place of --learning-rates and --embedding-l2; leave one of both out.")
    file, configs = config.space or "", [each.configure(train) for each in variants]
    if isinstance(content := read_yaml("--space", file), list):
        listed, *_ = [_listed(content, of_model, file) for of_model in configs]
        return listed
    distributions, *_ = [to_space(content, of_model, file) for of_model in configs]
    for option in distributions:
        _check_option(option, configs[0], file)
    space = Space(distributions)
    if space.ranges and not has_budget:
        raise UserError(
            f"{file}: {space.ranges[0]} has a range, from which a budget alone draws; give a list, or --tune-runs."
        )
    return space


def _listed(content: Sequence[Any], of_model: TrainConfig, file: str) -> Listed:
    """The settings that a list of mappings makes, for a model."""
    settings = []
    for number, values in enumerate(content, 1):
        if not isinstance(values, dict):
            raise UserError(
                f"{file}: setting {number} is {values!r}, but must be a mapping of options such as "
                "{model.dropout: 0.1}."
            )
        named = {_check_option(name, of_model, file): value for name, value in values.items()}
        try:
            settings.append(setting_of(with_values(of_model, named), [*named]))
        except UserError as error:
            raise UserError(f"{file}: setting {number}: {error}") from error
    if len({*settings}) < max(1, len(settings)):
        raise UserError(f"{file} has {len(settings)} settings, but must have one or more, each once.")
    return Listed(tuple(settings))


def _check_option(name: Any, of_model: TrainConfig, file: str) -> str:
    """The option of this name; raises UserError if a model does not have it, or is not trained by it."""
    try:
        option = option_of_model(name, of_model)
        if option in (ARCH, SPACES, "train.metric"):
            raise UserError(f"{option} is what models differ in, or are judged by; leave it out.")
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return option
