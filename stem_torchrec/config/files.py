"""A run's configuration as YAML, and from the command line: a recipe or a file, then `--section.field value`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stem_torchrec.config.command_line import parse_arguments, parse_known_arguments
from stem_torchrec.config.delta import DeltaConfig
from stem_torchrec.config.formats import with_format, without_format
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.model import (
    ModelConfig,
    Models,
    check_owned,
    options_class,
    owners,
    with_options_of,
)
from stem_torchrec.config.narrowed import narrowed, widened
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.config.start import StartConfig
from stem_torchrec.config.yaml_text import parse_yaml, to_yaml
from stem_torchrec.runtime.errors import UserError, nearest, reason_of
from stem_torchrec.runtime.path_options import InputFile
from stem_torchrec.runtime.store_path import path_of

Recipes = Mapping[str, Callable[[], TrainConfig]]

CONFIG_FILE = "config.yaml"
"""The configuration in the folder of a run."""
CONFIG_FORMAT = 1
"""Format version of config.yaml."""


def dump_config(config: TrainConfig) -> str:
    """The configuration as YAML that starts another run: without the run's folders and what it was resumed from."""
    checkpoint, delta = replace(config.checkpoint, folder=None), replace(config.delta, out=None)
    started_anew = replace(
        config, checkpoint=checkpoint, delta=delta, resume="auto", output_dir=None, take_over=False, dry_run=False
    )
    return to_yaml(with_format(to_dict(started_anew), CONFIG_FORMAT))


def what_is_trained(config: TrainConfig) -> TrainConfig:
    """The configuration with the defaults of all fields that do not change what a run learns, to tell runs apart."""
    default = LoopConfig()
    loop = replace(config.train, timeout=default.timeout, log_every=default.log_every, profile=default.profile)
    start = config.start if config.start_from is not None else StartConfig()
    folders = replace(config, checkpoint=CheckpointConfig(), resume="auto", output_dir=None, take_over=False)
    return replace(folders, recipe="", train=loop, start=start, delta=DeltaConfig(), dry_run=False)


def read_config(path: str, models: Models) -> TrainConfig:
    """Reads what `dump_config` wrote.

    Args:
        path: of config.yaml.
        models: the options that each model has.

    Raises UserError with the file and the field that is unknown or has a value that it does not take, or for a file in
    a newer format.
    """
    file = path_of(path)
    if not file.is_file():
        raise UserError(f"there is no configuration {path!r}; a run writes one as config.yaml in its folder.")
    try:
        content = parse_yaml(file.read_text())
    # ValueError: not text, or not YAML.
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a configuration ({reason_of(error)}).") from error
    values = without_format(content, CONFIG_FORMAT, path)
    try:
        # Before files had a format, they had all models' options.
        return config_from_dict(values, models, of_all_models=values is content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def config_from_dict(values: Any, models: Models, *, of_all_models: bool = False) -> TrainConfig:
    """The configuration that `to_dict` took, with the options of the model that it names.

    Args:
        values: nested dictionaries.
        models: the options that each model has.
        of_all_models: leaves out the options that only other models have, instead of refusing them.

    Raises UserError with the field that is unknown, of the wrong type or outside of its limits.
    """
    section = values.get("model", {}) if isinstance(values, dict) else None
    if not isinstance(section, dict):
        return from_dict(TrainConfig, values)  # Raises for what is not a mapping.
    arch = section.get("arch", ModelConfig.arch)
    kind = options_class(models, arch, "model.arch")
    if of_all_models:
        others = {name for name in section if arch not in (having := owners(models, str(name))) and having}
        section = {name: value for name, value in section.items() if name not in others}
    check_owned(models, arch, map(str, section), "model.")
    values = {**values, "model": section}
    return widened(from_dict(narrowed(TrainConfig, {"model": kind}), values), TrainConfig)


@dataclass(frozen=True)
class _Model:
    """The model, whose options the other fields of `--model` are."""

    arch: str | None = None


@dataclass(frozen=True)
class _Start:
    """The source of the defaults, and the model."""

    recipe: str | None = None
    config: InputFile | None = None
    model: _Model = _Model()


def config_from_arguments(
    args: Sequence[str] | None, *, models: Models, recipes: Recipes, about: Mapping[str, str]
) -> TrainConfig:
    """The configuration of `--recipe NAME` or `--config FILE`, with the fields that other options name replaced.

    Args:
        args: the command line, `sys.argv[1:]` if None.
        models: the options that each model has.
        recipes: configurations by name.
        about: a line for each model, for `--help`.

    Raises UserError for an unknown recipe, model or option, a wrong type or choice, a number outside of its limits, or
    an option that only other models have.
    """
    start, rest = parse_known_arguments(_Start(), args)
    if start.recipe is not None and start.config is not None:
        raise UserError("give --recipe or --config, not both; options change single fields of either.")
    recipe = _default_recipe(rest) if start.recipe is None else start.recipe
    if recipe not in recipes:
        known = ", ".join(recipes)
        raise UserError(f"there is no recipe {recipe!r}, only {known}{nearest(recipe, list(recipes))}")
    default = recipes[recipe]() if start.config is None else read_config(start.config, models)
    if start.model.arch is not None:
        kind = options_class(models, start.model.arch)
        default = replace(default, model=with_options_of(default.model, kind))
    options = [option.partition("=")[0] for option in rest if option.startswith("--model.")]
    names = [option.removeprefix("--model.").replace("-", "_") for option in options]
    check_owned(models, default.model.arch, names, "--model.")
    description = _description(start.config or recipe, default.model.arch, recipes, about)
    return parse_arguments(default, rest, description=description)


def _default_recipe(options: Sequence[str]) -> str:
    """A log of one's own has a recipe of its own; without a log a run trains on the synthetic one."""
    return "log" if "--data.path" in {option.partition("=")[0] for option in options} else "synthetic"


def _description(start: str, arch: str, recipes: Recipes, about: Mapping[str, str]) -> str:
    recipe_lines = "\n".join(f"  {name}: {(recipe.__doc__ or '').splitlines()[0]}" for name, recipe in recipes.items())
    model_lines = "\n".join(f"  {name}: {line}" for name, line in about.items())
    return (
        f"Trains a model, STEM by default. The defaults below are those of {start}.\n\n"
        f"--recipe NAME starts from another recipe; with --data.path the default is log:\n{recipe_lines}\n\n"
        "--config FILE starts from the config.yaml of a run.\n\n"
        f"--model.arch NAME trains another model; the other --model options below are those of {arch}:\n{model_lines}"
    )
