"""Where the rows of a run's tables started: at what its seed draws, or at another run's rows."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stem_torchrec.comparison.diagnostics import FeatureTables
from stem_torchrec.config import NewRows
from stem_torchrec.inspection.same_ids import ids_of
from stem_torchrec.models.table import table_choice_of
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError, reason_of
from stem_torchrec.runtime.store_path import path_of
from stem_torchrec.sharding.shard import initial_weights
from stem_torchrec.starting.id_maps import IdMap, LogIds, map_ids
from stem_torchrec.starting.model_weights import continued_group
from stem_torchrec.starting.record import StartRecord
from stem_torchrec.tables import TableChoice, embedding_bag_configs, table_name
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
    source_run: RunRecord
    """The run that has the source's tables; the run itself where nothing tells of another."""
    id_maps: Mapping[str, IdMap] = field(default_factory=dict)
    """Which rows of the source its rows continued, by feature; without those that nothing tells any more."""

    @classmethod
    def of(cls, run: RunRecord) -> "StartWeights":
        """What a run started from, by its start.json.

        Where the source is gone, its rows count as drawn from the seed, and so as changed.
        """
        drawn = f"the values that seed {run.config.seed} draws"
        if run.start is None or not run.start.parents:
            return cls(run, None, drawn, run)
        parent = run.start.parents[0]
        folder = path_of(parent.run or parent.weights)
        try:
            tables = FeatureTables([CheckpointWeights(path_of(parent.weights))])
            source = RunRecord.read(folder, folder.name) if (folder / CONFIG_FILE).exists() else None
        except UserError as error:
            return cls(run, None, f"{drawn}, as what it started from cannot be read ({reason_of(error)})", run)
        return cls(run, tables, parent.weights, source or run, _id_maps(run, run.start, tables, source))

    def read(self, feature: str, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The tables (N, D) of a feature at the start, by group; without those whose start is not known.

        Args:
            feature: of the run.
            sizes: (N, D) of its tables now, by group.
        """
        is_old = self.source is not None and feature in self.source.features
        if is_old and feature not in self.id_maps:
            return {}
        model, chosen = self.run.config.model, self.run.config.start
        configs = embedding_bag_configs(
            [self.run.columns.sparse[feature]],
            list(sizes),
            embedding_dim=model.embedding_dim,
            std=model.embedding_std,
            table_choice=TableChoice(widths={table_name(group, feature): width for group, (_, width) in sizes.items()}),
        )
        start = {
            group: initial_weights(config, seed=self.run.config.seed)
            for group, config in zip(sizes, configs, strict=True)
            if (config.num_embeddings, config.embedding_dim) == tuple(sizes[group])
        }
        if self.source is None or not is_old:
            return start
        of_source = self.source.sizes(feature)
        before = {
            group: continued_group(
                group,
                of_source,
                choice=table_choice_of(self.source_run.config.model),
                tasks=self.source_run.tasks,
                tables_from=chosen.tables_from,
            )
            for group in start
        }
        tables = self.source.read(feature, [old for old in dict.fromkeys(before.values()) if old is not None])
        for group, old in before.items():
            if old is not None:
                _continue(start[group], tables[old], self.id_maps[feature], chosen.new_rows)
        return start


def _id_maps(run: RunRecord, start: StartRecord, tables: FeatureTables, source: RunRecord | None) -> dict[str, IdMap]:
    """Which rows of the source the rows of a run continue, as start.json tells it, else by the vocabularies."""
    maps = {}
    for feature in (name for name in run.columns.sparse if name in tables.features):
        if feature in start.same_rows:
            old = max(rows for rows, _ in tables.sizes(feature).values())
            has_unseen = feature in start.ids and start.ids[feature].kind in ("vocabulary", "unknown")
            rows = run.columns.sparse[feature].num_embeddings
            maps[feature] = IdMap(old, rows, unseen=0 if has_unseen else None)
        elif source is not None:
            # What cannot be matched is left out.
            with suppress(UserError):
                pair = [_only(ids_of(each), feature) for each in (source, run)]
                maps |= map_ids(*pair, name=source.name, hashed=run.config.start.hash_ids)
    return maps


def _only(ids: LogIds, feature: str) -> LogIds:
    return LogIds(ids.log, {name: space for name, space in ids.spaces.items() if name == feature})


def _continue(weight: Tensor, old: Tensor, ids: IdMap, new_rows: NewRows) -> None:
    """Fills a table (N, D) that has its initial values as `starting.carry` does, from the table of the source."""
    rows = torch.arange(len(weight)) if ids.rows is None else ids.rows
    carried = (rows >= 0) & (rows < len(old))
    width = min(weight.shape[1], old.shape[1])
    own = weight[:, :width]
    own[carried] = old[rows[carried], :width]
    if new_rows == "unseen" and ids.unseen is not None:
        own[~carried] = old[ids.unseen, :width]
    elif new_rows == "mean" and carried.any():
        # The ranks have added in another order, which in float64 almost never changes a bit of the float32 mean.
        own[~carried] = own[carried].mean(dim=0, dtype=torch.float64).to(weight.dtype)
