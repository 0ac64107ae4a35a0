"""The space that a search chooses from, and the configuration of a trial with its choices."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from stem_torchrec.config import TrainConfig
from stem_torchrec.config.command_line import option_names
from stem_torchrec.config.serialization import from_dict
from stem_torchrec.config.yaml_text import read_yaml
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.footers import fingerprint
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.schema import load_schema
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.starting.source import with_source_path
from stem_torchrec.training.configuration import known_option, with_values
from stem_torchrec.training.steps_by_rows import choose_steps
from stem_torchrec.training.watched_metric import WatchedMetric

Space = dict[str, BaseDistribution]
"""The distribution of each option, by its name, such as `model.dropout`."""

SPACE: Mapping[str, Any] = {
    "model.num_shared_experts": [1, 2, 4, 8],
    "model.num_task_experts": [1, 2, 4],
    "model.embedding_l2": {"low": 1e-3, "high": 5.0, "log": True},
    "model.dropout": {"low": 0.0, "high": 0.3, "step": 0.1},
}
"""The search space of the published experiments (arXiv 2308.13537); a list gives choices, a mapping a range. Their L2
is 1e-6 to 5e-3, on whole tables in every step; `model.embedding_l2` is divided by the rows of a batch, so its values
are about 1000 times as large."""

_FIXED = (
    *("checkpoint", "data.labels", "data.path", "data.synthetic"),
    *("output_dir", "resume", "take_over", "train.metric"),
)
"""Options and sections that are the same for all trials: what they are compared by, and where they are kept."""


@dataclass(frozen=True)
class Search:
    """What the trials train, and what each of them chooses."""

    base: TrainConfig
    space: Space
    train_rows: int = 0
    """Training rows of the log; `resolve_log` fills them in."""
    log: Mapping[str, str] = field(default_factory=dict)
    """The fingerprint of each split; `resolve_log` fills them in."""

    def trial_config(self, choices: Mapping[str, Any]) -> TrainConfig:
        """The configuration of a trial, for one rank.

        Without `train.eval_every` it evaluates four times an epoch, and once where tables begin anew with each.
        """
        config = choose_steps(with_choices(self.base, choices), self.train_rows, 1)
        if config.train.eval_every is not None or _begins_anew(config):
            return config
        return replace(config, train=replace(config.train, eval_every=math.ceil(self._steps(config) / 4)))

    def run_config(self, choices: Mapping[str, Any], folder: Path) -> TrainConfig:
        """The configuration with which a trial trains in `folder`; it writes no checkpoints, as it is not resumed."""
        config = self.trial_config(choices)
        checkpoint = replace(config.checkpoint, minutes=None, steps=None)
        return replace(config, checkpoint=checkpoint, output_dir=str(folder))

    def quarters_made(self, config: TrainConfig, step: int) -> int:
        """What trials are compared by: quarters of an epoch after `step` steps, rounded, so the rows trained on.

        Where `train.max_steps` ends a trial within its first epoch, quarters of these steps.

        Example::

            # 1,000 rows in batches of 100
            search.quarters_made(config, 3)   # 1
            search.quarters_made(config, 20)  # 8
        """
        return round(4 * step / self._steps(config))

    def prunes_from(self, config: TrainConfig) -> int:
        """The quarters after which a trial that lags behind may end.

        Where tables begin anew with each epoch that is at the end of the second: among the runs of models, options and
        seeds on logs of four sources, in ten groups of 10 to 30, the median rank correlation of the best score so far
        with that of the whole run was 0.5 after one epoch, 0.7 after two and 0.8 after three, of six.
        """
        return 8 if _begins_anew(config) else 1

    def _steps(self, config: TrainConfig) -> int:
        """Steps of an epoch, or of the run if it is shorter."""
        steps = math.ceil(self.train_rows / config.data.batch_size)
        return min(steps, config.train.max_steps or steps)


def resolve_log(search: Search) -> Search:
    """The search with what depends on the log: its folder and its rows.

    Raises UserError if columns or the metric do not fit the log, before a trial is trained.
    """
    path = data_folder(search.base.data)
    base = with_source_path(replace(search.base, data=replace(search.base.data, path=path), dry_run=False))
    schema, row_groups = load_schema(path), dict[str, list[RowGroup]]()
    features = search.space.get("data.features")
    choices = features.choices if isinstance(features, CategoricalDistribution) else ()
    for config in [with_choices(base, {"data.features": choice}) for choice in choices] or [base]:
        columns = Columns.select(
            schema, features=config.data.features, labels=config.data.labels, spaces=config.data.spaces
        )
        row_groups = {split: find_row_groups(path, split, schema, columns) for split in ("train", "valid")}
        WatchedMetric.of_split(base.train.metric, columns, row_groups["valid"])
    log = {split: fingerprint(of_split) for split, of_split in row_groups.items()}
    return replace(search, base=base, train_rows=sum(each.rows for each in row_groups["train"]), log=log)


def read_space(path: str, base: TrainConfig) -> Space:
    """Reads a search space from a YAML file; raises UserError that names the wrong option."""
    return to_space(read_yaml("--space", path), base, path)


def published_space(base: TrainConfig) -> Space:
    """The search space of the published experiments, without the options that the model does not have."""
    known = [name.removeprefix("--").replace("-", "_") for name in option_names(base)]
    return to_space({option: SPACE[option] for option in SPACE if option in known}, base, "the published space")


def to_space(space: Any, base: TrainConfig, where: str) -> Space:
    """Optuna's distributions of a space, with every value of the type of its option and within its limits.

    Args:
        space: a mapping of options, with hyphens or underscores, to lists or ranges.
        base: the configuration that has the options.
        where: the file of the space, for errors.

    Raises UserError that names the wrong option, and for what is no such mapping.

    Example::

        to_space({"model.num-task-experts": [1, 2]}, tiny(), "space.yaml")
        # {"model.num_task_experts": CategoricalDistribution([1, 2])}
    """
    if not isinstance(space, dict) or not space:
        raise UserError(
            f"{where} is not a mapping of options to choices; write lines like `model.dropout: [0.0, 0.1]`."
        )
    distributions: Space = {}
    for name, values in space.items():
        try:
            option = _option(name, base)
            distributions[option] = _distribution(option, values, base)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    return distributions


def with_choices(base: TrainConfig, choices: Mapping[str, Any]) -> TrainConfig:
    """`base` with the choices of a trial.

    Example::

        with_choices(tiny(), {"model.dropout": 0.1, "model.expert_hidden": "[64, 32]"})
    """
    return with_values(
        base,
        {
            # As _distribution writes lists and mappings; the text of no option begins so.
            option: json.loads(choice) if isinstance(choice, str) and choice.startswith(("[", "{")) else choice
            for option, choice in choices.items()
        },
    )


def _begins_anew(config: TrainConfig) -> bool:
    return config.train.fresh_tables and config.train.epochs > 1


def _option(name: Any, base: TrainConfig) -> str:
    option = known_option(name, base)
    if any(option == fixed or option.startswith(f"{fixed}.") for fixed in _FIXED):
        raise UserError(f"{option} is the same for all trials; leave it out of the space.")
    return option


def _distribution(option: str, values: Any, base: TrainConfig) -> BaseDistribution:
    if isinstance(values, list) and values:
        typed = [_typed(option, value, base) for value in values]
        # Lists and mappings as JSON: Optuna's journal returns a tuple as a list, which then counts as another choice.
        return CategoricalDistribution([json.dumps(v) if isinstance(v, (tuple, dict)) else v for v in typed])
    if not isinstance(values, dict) or not {"low", "high"} <= set(values):
        raise UserError(f"{option} is {values!r}, but must be a list, or a mapping with low and high.")
    ends = {end: _typed(option, values[end], base) for end in ("low", "high")}
    kinds = {type(end) for end in ends.values()}
    if kinds != {int} and kinds != {float}:
        raise UserError(f"{option} is {values!r}, but only numbers have a range; give a list.")
    try:
        if kinds == {int}:
            return IntDistribution(**vars(from_dict(_IntRange, {**values, **ends})))
        return FloatDistribution(**vars(from_dict(_FloatRange, {**values, **ends})))
    # By Optuna, for ends that do not fit each other.
    except ValueError as error:
        raise UserError(f"{option} is {values!r}, which is not a range: {reason_of(error)}.") from error


@dataclass(frozen=True)
class _IntRange:
    """What a range of whole numbers has."""

    low: int
    high: int
    step: Annotated[int, Interval(ge=1, le=10**12)] = 1
    log: bool = False


@dataclass(frozen=True)
class _FloatRange:
    """What a range of other numbers has."""

    low: float
    high: float
    step: Annotated[float, Interval(gt=0, le=1e12)] | None = None
    log: bool = False


def _typed(option: str, value: Any, base: TrainConfig) -> Any:
    """A value as the configuration holds it: a tuple for a list, 1.0 for 1 where the option is a float."""
    return attrgetter(option)(with_values(base, {option: value}))
