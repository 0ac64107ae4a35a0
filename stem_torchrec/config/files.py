"""A run's configuration as YAML, and from the command line: a recipe or a file, then `--section.field value`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stem_torchrec.config.command_line import parse_arguments, parse_known_arguments
from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.recipes import RECIPES
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.runtime.errors import UserError, nearest, reason_of

CONFIG_FORMAT = 1
"""Format version of config.yaml."""


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML that starts another run: without the run's folders and what it was resumed from."""
    checkpoint = replace(config.checkpoint, folder=None)
    started_anew = replace(config, checkpoint=checkpoint, resume="auto", output_dir=None)
    return to_yaml(with_format(to_dict(started_anew), CONFIG_FORMAT))


def what_is_trained(config: TrainConfig) -> TrainConfig:
    """The configuration with the defaults of all fields that do not change what a run learns, to tell runs apart."""
    default = LoopConfig()
    loop = replace(config.train, timeout=default.timeout, log_every=default.log_every, profile=default.profile)
    return replace(config, train=loop, checkpoint=CheckpointConfig(), resume="auto", output_dir=None)


def load_config(path: str) -> TrainConfig:
    """Reads what `dump_config` wrote.

    Raises UserError with the file and the field that is unknown or has a value that it does not take, or for a file in
    a newer format.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no configuration {path!r}; a run writes one as config.yaml in its folder.")
    try:
        content = parse_yaml(Path(path).read_text())
    # ValueError: not text, or not YAML.
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration ({reason_of(error)}).") from error
    fields = without_format(content, CONFIG_FORMAT, path)
    try:
        return from_dict(TrainConfig, fields)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _Start:
    """The source of the defaults."""

    recipe: str | None = None
    config: str | None = None


def config_from_command_line(args: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of `--recipe NAME` or `--config FILE`, with the fields that other options name replaced.

    Raises UserError for an unknown recipe or option, a wrong type or choice, or a number outside of its limits.

    Example::

        config_from_command_line(["--recipe", "tiny", "--train.epochs", "2"])
    """
    start, rest = parse_known_arguments(_Start(), args)
    if start.recipe and start.config:
        raise UserError("give --recipe or --config, not both; options change single fields of either.")
    recipe = start.recipe or "synthetic"
    if recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise UserError(f"there is no recipe {recipe!r}, only {known}{nearest(recipe, list(RECIPES))}")
    default = load_config(start.config) if start.config else RECIPES[recipe]()
    return parse_arguments(default, rest, description=_description(start.config or recipe))


def _description(start: str) -> str:
    recipes = "\n".join(f"  {name}: {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in RECIPES.items())
    return (
        f"Trains a model, STEM by default. The defaults below are those of {start}.\n\n"
        f"--recipe NAME starts from another recipe:\n{recipes}\n\n"
        "--config FILE starts from the config.yaml of a run."
    )
