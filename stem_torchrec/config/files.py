"""A run's configuration as YAML, and from the command line: a recipe or a file, then `--section.field value`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import dacite
import yaml

from stem_torchrec.config.command_line import parse_arguments, parse_known_arguments
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.recipes import RECIPES
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError, nearest, reason_of


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML, which starts another run: its folders and what it went on from are left out."""
    checkpoint = replace(config.checkpoint, folder=None)
    return yaml.safe_dump(
        to_dict(replace(config, checkpoint=checkpoint, resume="auto", output_dir=None)), sort_keys=False
    )


def what_is_trained(config: TrainConfig) -> TrainConfig:
    """The configuration with the defaults for what does not change what a run learns, to tell runs apart."""
    usual = LoopConfig()
    loop = replace(config.train, timeout=usual.timeout, log_every=usual.log_every, profile=usual.profile)
    return replace(config, train=loop, checkpoint=CheckpointConfig(), resume="auto", output_dir=None)


def load_config(path: str) -> TrainConfig:
    """Reads what `dump_config` wrote; raises UserError with the file and the field that is wrong."""
    if not os.path.isfile(path):
        raise UserError(f"there is no configuration {path!r}; a run writes one as config.yaml in its folder.")
    with open(path) as file:
        try:
            return from_dict(TrainConfig, yaml.safe_load(file))
        except (yaml.YAMLError, dacite.DaciteError, ValueError, TypeError) as error:
            raise UserError(f"{path}: {reason_of(error)}; --help shows what each field takes.") from error


@dataclass(frozen=True)
class _Start:
    """Where the defaults come from."""

    recipe: str | None = None
    config: str | None = None


def config_from_command_line(args: Sequence[str] | None = None) -> TrainConfig:
    """The configuration that `--recipe NAME` or `--config FILE` and the options behind it say.

    Raises UserError for an unknown recipe, name, type or choice.
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
