"""A run's configuration from a command line or a file, with the options of the model that it trains."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import option_names
from stem_torchrec.config.files import (
    CONFIG_FILE,
    config_from_arguments,
    config_from_dict,
    for_the_next_run,
    read_config,
    what_is_trained,
)
from stem_torchrec.config.model import check_owned
from stem_torchrec.config.serialization import to_dict
from stem_torchrec.models.table import MODELS, all_options
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.starting.source import config_of_source
from stem_torchrec.training.recipes import RECIPES
from stem_torchrec.training.run_folder import folders_of_launch


def config_from_command_line(args: Sequence[str] | None = None) -> TrainConfig:
    """The configuration of `--recipe NAME` or `--config FILE`, with the fields that other options name replaced.

    Without either, `--start-from RUN` takes the options of RUN, and a line of the output says so: all but its folders,
    and but what it started from itself. `--model.arch NAME` gives it the options of that model, with the values that
    the recipe, file or run has for them.

    Raises UserError for an unknown recipe, model or option, a wrong type or choice, a number outside of its limits, or
    an option of another model.

    Example::

        config_from_command_line(["--recipe", "tiny", "--model.arch", "ple", "--model.num-layers", "2"])
    """
    about = {arch: line.about for arch, line in MODELS.items()}
    return config_from_arguments(
        args, models=all_options(), recipes=RECIPES, about=about, options_of_source=_options_of_source
    )


def _options_of_source(source: str, run: str | None) -> TrainConfig | None:
    """The options of what a run starts from; of a run that has started already and whose source is gone, its own."""
    config = config_of_source(source)
    name = source if "://" in source else os.path.abspath(source)
    for folder in [path_of(run)] if run else folders_of_launch():
        saved = folder / CONFIG_FILE
        if config is None and saved.exists() and (own := load_config(str(saved))).start_from == name:
            config = own
    return None if config is None else for_the_next_run(config)


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


def trained_options(values: Any) -> dict[str, Any]:
    """`to_dict(what_is_trained(config))` that some version recorded, as this version would: with the options it lacks.

    An option that an earlier version did not have counts as having its default, as in a config.yaml.

    Raises UserError with the option that this version does not know, or with a value that it does not take.
    """
    return to_dict(what_is_trained(config_from_dict(values, all_options())))


def with_trained_options(recorded: dict[str, Any]) -> dict[str, Any]:
    """What a folder records, with its entry `train` as `trained_options` completes it; raises as that does."""
    return recorded | ({"train": trained_options(recorded["train"])} if "train" in recorded else {})


def known_option(name: Any, config: TrainConfig) -> str:
    """The option of this name as `with_values` takes it: the name may have hyphens, as in --help.

    Raises UserError for a name that no option has, or only those of other models than that of `config`.

    Example::

        known_option("model.num-task-experts", tiny())  # "model.num_task_experts"
    """
    # YAML may have read a number.
    option, *known = (each.removeprefix("--").replace("-", "_") for each in (str(name), *option_names(config)))
    if option not in known:
        check_owned(all_options(), config.model.arch, [option.removeprefix("model.")], "model.")
        hint = nearest(option, known) or ";"
        raise UserError(f"there is no option {name!r}{hint} train.py --help lists them.")
    return option


def with_values(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other values of some options, as YAML has them.

    Raises UserError with the option for a value that it does not take.

    Example::

        with_values(tiny(), {"model.dropout": 0.1, "model.expert_hidden": [64, 32]})
    """
    plain = to_dict(config)
    for option, value in values.items():
        section = plain
        *sections, name = option.split(".")
        for each in sections:
            section = section[each]
        section[name] = value
    return run_config(plain)
