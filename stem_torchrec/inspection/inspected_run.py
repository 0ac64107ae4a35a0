"""A run that is looked at: what its tables hold, and what it predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from stem_torchrec.comparison.diagnostics import FeatureTables
from stem_torchrec.inspection.predicted_rows import PredictedRows
from stem_torchrec.inspection.start_weights import StartWeights
from stem_torchrec.inspection.table_facts import ChangedId, FeatureFacts, feature_facts
from stem_torchrec.inspection.train_ids import TrainIds, count_ids
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.run_report.vocabularies import read_values, vocabularies_of_run
from stem_torchrec.transfer.weight_source import CheckpointWeights


@dataclass(frozen=True)
class InspectedRun:
    """A run with the facts about its best weights."""

    record: RunRecord
    groups: Sequence[str]
    """The groups that are shown: tasks, and shared ones."""
    predicted: PredictedRows | None
    """None where only tables are looked at."""
    ids: TrainIds
    start: StartWeights
    features: Sequence[FeatureFacts]

    @property
    def name(self) -> str:
        """What tells the run apart."""
        return self.record.name

    @property
    def tasks(self) -> list[str]:
        """The tasks that are shown."""
        return [task for task in self.record.tasks if task in self.groups]

    @cached_property
    def _vocabularies(self) -> Mapping[str, Path]:
        return vocabularies_of_run(self.record)

    def values(self, feature: str, changed: Sequence[ChangedId]) -> dict[int, str]:
        """The raw values of some ids, by id; {} where the log has no vocabulary for the feature."""
        file = self._vocabularies.get(feature)
        if file is None or not changed:
            return {}
        values = read_values(file, [("id", "in", [each.id for each in changed])])
        return dict(zip(values.ids.tolist(), values.values, strict=True))


def tables_of(record: RunRecord) -> FeatureTables:
    """The tables in a run's best weights; raises UserError if there are none."""
    return FeatureTables([CheckpointWeights(record.folder)])


def inspect_tables(
    record: RunRecord, groups: Sequence[str], predicted: PredictedRows | None, *, rows: int | None, top: int
) -> InspectedRun:
    """Looks at the tables of a run; those of one feature are in memory at a time, twice: now and at the start.

    Args:
        record: the run.
        groups: to show.
        predicted: the rows that it has predicted.
        rows: training rows at most to count ids in.
        top: ids of a feature to list.
    """
    tables, start, ids = tables_of(record), StartWeights.of(record), count_ids(record, rows=rows)
    features = []
    for feature in (name for name in record.columns.sparse if name in tables.features):
        on_disk = tables.sizes(feature)
        sizes = {group: on_disk[group] for group in groups if group in on_disk}
        if sizes:
            weights = tables.read(feature, list(sizes))
            counts = ids.counts.get(feature)
            features.append(feature_facts(feature, weights, start.read(feature, sizes), counts, top=top))
    return InspectedRun(record, groups, predicted, ids, start, features)
