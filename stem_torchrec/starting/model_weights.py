"""The weights of a model as its configuration and its log describe them: names, sizes, and what their axes mean."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stem_torchrec.checkpoints.load_planner import split_sizes
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.config import ModelConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.table import groups_with_tables, table_choice_of
from stem_torchrec.starting.axis_labels import CLOSED, Axes, axes_of_weights
from stem_torchrec.tables import TableChoice, TableTensor, table_feature, table_group


@dataclass(frozen=True)
class Match:
    """The weight of the source that a weight of the model continues."""

    old: str
    """Its name in the split layout."""
    old_size: tuple[int, ...]
    axes: tuple[Tensor | None, ...]
    """For each axis the old position of each position, int64, -1 where it is new; None if position i continues i."""
    weight_axes: tuple[Tensor | None, ...]
    """The same for the weight alone, whose new rows may continue that of unseen values."""
    has_states: bool
    """Whether its optimizer states are continued as well."""
    starts: tuple[float | None, ...] = ()
    """For each axis what its new positions start from; as they are initialized if None, or if it is left out."""


def continued_group(
    group: str, having: Collection[str], *, choice: TableChoice, tasks: Collection[str], tables_from: str | None
) -> str | None:
    """The group of the source whose table of a feature a group's table continues; None if it starts fresh.

    It is the group's own; where the source has none, the one that the group or task of this name read, so that the
    model predicts what it did; for a new group that of `tables_from`.

    Args:
        group: of the run's tables.
        having: the groups that have a table of the feature in the source.
        choice: the tables of the source.
        tasks: of the source.
        tables_from: see StartConfig.

    Example::

        # A source that had only a shared table of tags, which the task like read.
        continued_group("like", ["shared"], choice=TableChoice(own=["uid"]), tasks=["like"], tables_from=None)
        # "shared"
    """
    old = {*tasks, *choice.groups.values()}
    for name in (group,) if tables_from is None else (group, tables_from):
        read = choice.read_by(name, having) if name in old else name
        if read in having:
            return read
    return None


Matches = dict[str, Match]
"""By the names of the model's weights in the split layout."""


class ModelWeights:
    """The weights of a model that is built for their names, without memory for its tables.

    Args:
        config: of the model.
        columns: of its log.
        gate_bias: see `axes_of_weights`.

    Example::

        ModelWeights(config.model, columns).sizes["model.towers.like.0.weight"]  # (128, 512)
    """

    def __init__(self, config: ModelConfig, columns: Columns, *, gate_bias: float = CLOSED) -> None:
        self.columns, self._gate_bias = columns, gate_bias
        with torch.random.fork_rng(devices=[]):
            self.train = build_model(config, columns)
        self.groups = tuple(groups_with_tables(config, columns.labels))
        """Those that have tables."""
        with without_warnings():
            self.sizes = split_sizes({name: weight.size() for name, weight in self.train.state_dict().items()})
        """The size of each weight by its name in the split layout."""
        self.choice = table_choice_of(config)

    @property
    def tables(self) -> dict[str, TableTensor]:
        """The tables of one group and feature by the names of their weights."""
        return {name: tensor for name in self.sizes if (tensor := TableTensor.parse(name)) is not None}

    @cached_property
    def groups_of_features(self) -> dict[str, list[str]]:
        """The groups that have a table of a feature, by feature."""
        groups: dict[str, list[str]] = {}
        for tensor in self.tables.values():
            groups.setdefault(table_feature(tensor.table), []).append(table_group(tensor.table))
        return groups

    @cached_property
    def axes(self) -> dict[str, Axes]:
        """Of each weight that is not a table."""
        return axes_of_weights(self.train, self.columns.dense, gate_bias=self._gate_bias)

    @property
    def modules(self) -> dict[str, list[str]]:
        """The names of the weights of each part of the model that is not a table.

        Example::

            weights.modules["towers.like"]  # ["model.towers.like.0.weight", "model.towers.like.0.bias", ...]
        """
        modules: dict[str, list[str]] = {}
        for name in self.axes:
            # A part is an MLP, experts or a gate as a whole.
            part = re.sub(
                r"((?:bottoms|experts|gates|towers)\.[^.]+)\..*|(\.\d+)?\.\w+$", r"\1", name.removeprefix("model.")
            )
            modules.setdefault(part, []).append(name)
        return modules
