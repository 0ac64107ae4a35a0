"""A run's configuration from a command line or a file, with the options of the model that it trains."""

from collections.abc import Sequence
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.files import config_from_arguments, config_from_dict, read_config
from stem_torchrec.models.table import MODELS, all_options
from stem_torchrec.training.recipes import RECIPES


def config_from_command_line(args: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of `--recipe NAME` or `--config FILE`, with the fields that other options name replaced.

    `--model.arch NAME` gives it the options of that model, with the values that the recipe or file has for them.

    Raises UserError for an unknown recipe, model or option, a wrong type or choice, a number outside of its limits, or
    an option of another model.

    Example::

        config_from_command_line(["--recipe", "tiny", "--model.arch", "ple", "--model.num-layers", "2"])
    """
    about = {arch: line.about for arch, line in MODELS.items()}
    return config_from_arguments(args, models=all_options(), recipes=RECIPES, about=about)


def load_config(path: str) -> TrainConfig:
    """Reads a config.yaml, of a run or written by hand.

    Raises UserError with the file and the field that is unknown or has a value that it does not take, or for a file in
    a newer format.
    """
    return read_config(path, all_options())


def run_config(values: dict[str, Any]) -> TrainConfig:
    """The configuration that `to_dict` took; options that only other models have are left out.

    Raises UserError with the field that is unknown, of the wrong type or outside of its limits.
    """
    return config_from_dict(values, all_options(), of_all_models=True)
