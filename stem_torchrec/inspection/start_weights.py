"""Where the rows of a run's tables started: at what its seed draws, or at another run's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from stem_torchrec.comparison.diagnostics import FeatureTables
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.vocabularies import read_values, vocabularies_of_run
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.sharding.shard import initial_weights
from stem_torchrec.tables import embedding_bag_configs
from stem_torchrec.training.run_folder import CONFIG_FILE
from stem_torchrec.transfer.weight_source import CheckpointWeights


@dataclass(frozen=True)
class StartWeights:
    """The tables that a run started from."""

    run: RunRecord
    source: FeatureTables | None
    """The tables whose rows it went on from; None for a run that started from its seed alone."""
    name: str
    """What it started from, for the page."""
    renumbered: Sequence[str] = ()
    """The features whose ids have other values in the source, so that their rows cannot be matched."""

    @classmethod
    def of(cls, run: RunRecord) -> "StartWeights":
        """What a run started from, by its start.json.

        Where the source is gone, its rows count as drawn from the seed, and so as changed.
        """
        drawn = f"the values that seed {run.config.seed} draws"
        if run.start is None or not run.start.parents:
            return cls(run, None, drawn)
        parent = run.start.parents[0]
        folder = path_of(parent.run or parent.weights)
        try:
            tables = FeatureTables([CheckpointWeights(path_of(parent.weights))])
            source = RunRecord.read(folder, folder.name) if (folder / CONFIG_FILE).exists() else None
        except UserError as error:
            return cls(run, None, f"{drawn}, as what it started from cannot be read ({reason_of(error)})")
        renumbered = [] if source is None else [each for each in tables.features if other_value(run, source, each)]
        return cls(run, tables, parent.weights, renumbered)

    def read(self, feature: str, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The tables (N, D) of a feature at the start, by group; without those whose start is not known.

        Args:
            feature: of the run.
            sizes: (N, D) of its tables now, by group.
        """
        if feature in self.renumbered:
            return {}
        configs = embedding_bag_configs(
            [self.run.columns.sparse[feature]],
            list(sizes),
            embedding_dim=self.run.config.model.embedding_dim,
            std=self.run.config.model.embedding_std,
        )
        start = {
            group: initial_weights(config, seed=self.run.config.seed)
            for group, config in zip(sizes, configs, strict=True)
            if (config.num_embeddings, config.embedding_dim) == tuple(sizes[group])
        }
        before = {} if self.source is None or feature not in self.source.features else self.source.read(feature)
        for group, weight in before.items():
            if group in start and weight.shape[1] == start[group].shape[1]:
                rows = min(len(weight), len(start[group]))
                start[group][:rows] = weight[:rows]
        return start


def other_value(run: RunRecord, other: RunRecord, feature: str) -> str:
    """An id that has another raw value in the log of another run, in words; "" if all have the same, or none is known.

    Example::

        other_value(run, other, "color")  # "id 3 of 'color' is 'red', not 'green'"
    """
    if run.config.data.path == other.config.data.path or feature not in other.columns.sparse:
        return ""
    files = [vocabularies_of_run(each).get(feature) for each in (run, other)]
    if files[0] is None or files[1] is None:
        return ""
    rows = min(each.columns.sparse[feature].num_embeddings for each in (run, other))
    own, others = (read_values(file, [("id", "<", rows)]) for file in files if file is not None)
    _, i, j = np.intersect1d(own.ids, others.ids, assume_unique=True, return_indices=True)
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        if own.values[a] != others.values[b]:
            return f"id {own.ids[a]} of {feature!r} is {own.values[a]!r}, not {others.values[b]!r}"
    return ""
