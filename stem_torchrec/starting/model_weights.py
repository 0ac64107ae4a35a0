"""The weights of a model as its configuration and its log describe them: names, sizes, and what their axes mean."""

import re
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from stem_torchrec.checkpoints.load_planner import split_sizes
from stem_torchrec.checkpoints.storage import without_warnings
from stem_torchrec.config import ModelConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.models.table import groups_with_tables
from stem_torchrec.starting.axis_labels import CLOSED, Axes, axes_of_weights
from stem_torchrec.tables import TableTensor


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
        self.groups = tuple(groups_with_tables(config.arch, columns.labels))
        """Those that have tables."""
        with without_warnings():
            self.sizes = split_sizes({name: weight.size() for name, weight in self.train.state_dict().items()})
        """The size of each weight by its name in the split layout."""

    @property
    def tables(self) -> dict[str, TableTensor]:
        """The tables of one group and feature by the names of their weights."""
        return {name: tensor for name in self.sizes if (tensor := TableTensor.parse(name)) is not None}

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
            part = re.sub(r"((?:bottoms|experts|gates)\.[^.]+)\..*|(\.\d+)?\.\w+$", r"\1", name.removeprefix("model."))
            modules.setdefault(part, []).append(name)
        return modules
