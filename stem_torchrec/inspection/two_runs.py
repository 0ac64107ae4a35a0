"""Two runs side by side: metrics on the same rows, tables that both have, and what only one has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stem_torchrec.comparison.diagnostics import FeatureTables, linear_cka
from stem_torchrec.comparison.intervals import Interval
from stem_torchrec.comparison.multiplicity import adjust, draws_for
from stem_torchrec.comparison.task_scores import measures_of
from stem_torchrec.data.label_kinds import refusal_of_kinds
from stem_torchrec.inspection.predicted_rows import PredictedRows
from stem_torchrec.inspection.same_ids import ids_of, other_value
from stem_torchrec.inspection.table_facts import ChangedId, most_changed, row_distances
from stem_torchrec.run_report.run_record import RunRecord
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.sharding.placement import some

CONFIDENCE = 0.95


@dataclass(frozen=True)
class TableChange:
    """A table of a run beside the one of the same name in another run."""

    feature: str
    group: str
    rows: int
    """Rows that both have: the first ones."""
    changed: float
    """Share of these rows that differ."""
    distance: float
    """Of the two tables, divided by the length of the other one (Frobenius norms); infinite if that is 0."""
    similarity: float
    """Linear CKA of the two tables."""


@dataclass(frozen=True)
class FeatureChange:
    """The tables of a feature beside those in another run."""

    feature: str
    tables: Sequence[TableChange]
    changed: Sequence[ChangedId]
    """The ids whose rows differ the most."""


@dataclass(frozen=True)
class Differences:
    """The metrics of a run minus those of another run, over the same rows."""

    intervals: Mapping[tuple[str, str], Interval]
    """By task and measure, of the tasks that both have; their p-values are adjusted together."""
    values: Mapping[tuple[str, str], tuple[float, float]]
    """The measure of the run and of the other one."""
    draws: int
    """Of users."""


def check_two(run: RunRecord, other: RunRecord, *, tables_only: bool = False) -> None:
    """Raises UserError for two runs that cannot be laid beside each other.

    Args:
        run: the first one.
        other: the one that it is compared with.
        tables_only: whether nothing is predicted, so that labels may be of any kind.
    """
    if not set(run.tasks) & set(other.tasks):
        raise UserError(
            f"{run.folder} has the tasks {some(run.tasks)}, and {other.folder} {some(other.tasks)}; give two runs that "
            "share a task."
        )
    for each in () if tables_only else (run, other):
        fix = "give one run, two that were trained with {labels}, or --tables-only"
        if refusal := refusal_of_kinds(each.columns, "stem-inspect with two runs", fix=fix):
            raise UserError(refusal)
    for name in run.columns.sparse:
        if value := other_value(run, other, name):
            raise UserError(
                f"{other.folder} has other ids than {run.folder}: {value}; give runs of one log, or of logs whose "
                "vocabularies go on from each other."
            )


def run_whose_log_both_read(run: RunRecord, other: RunRecord) -> RunRecord:
    """The first run, or the other one if the first one's log has ids that the other one has no row for.

    Ids that a vocabulary has got since are read as unseen, so that they need no row.

    Raises UserError if neither can read the log of the other one.
    """
    for reader, whose in ((other, run), (run, other)):
        log = {each.name: each.num_embeddings for each in whose.schema.sparse_features}
        kinds = {name: space.kind for name, space in ids_of(whose).spaces.items()}
        if set(reader.tasks) <= set(whose.schema.labels) and all(
            name in log and (kinds.get(name) == "vocabulary" or log[name] <= feature.num_embeddings)
            for name, feature in reader.columns.sparse.items()
        ):
            return whose
    raise UserError(
        f"neither the log of {run.folder} nor that of {other.folder} has all labels, features and ids that the other "
        "one needs; give one that both can read by --data.path, or --tables-only."
    )


def only_one_has(run: RunRecord, other: RunRecord) -> list[str]:
    """What differs between two runs so that it is left out, in sentences."""
    sentences = []
    if run.config.model.arch != other.config.model.arch:
        sentences.append(
            f"{run.name} is a model {run.config.model.arch} and {other.name} a model {other.config.model.arch}; of "
            "tables only those with the same name and width are compared."
        )
    for kind, own, others in (
        ("task", run.tasks, other.tasks),
        ("feature", list(run.columns.sparse), list(other.columns.sparse)),
    ):
        for name, more, fewer in ((run.name, own, others), (other.name, others, own)):
            if alone := [each for each in more if each not in fewer]:
                sentences.append(f"Only {name} has the {kind}{'s' * (len(alone) > 1)} {some(alone)}.")
    counts = [
        f"{name} {feature.num_embeddings:,} and {other.columns.sparse[name].num_embeddings:,}"
        for name, feature in run.columns.sparse.items()
        if name in other.columns.sparse and other.columns.sparse[name].num_embeddings != feature.num_embeddings
    ]
    if counts:
        sentences.append(f"Rows in {run.name} and {other.name}: {', '.join(counts)}; the first ones are compared.")
    return sentences


def differences(run: PredictedRows, other: PredictedRows, tasks: Sequence[str]) -> Differences:
    """Measures two runs that have predicted the same rows, and draws users; see `comparison.intervals`."""
    measured = [(task, name) for task in tasks for name in measures_of(grouped=run.grouped)]
    draws = draws_for(len(measured), CONFIDENCE)
    beside = {task: run.beside(other, task) for task in tasks}
    resampled = {
        (task, name): beside[task].resample(name, draws=draws, confidence=CONFIDENCE) for task, name in measured
    }
    family = adjust({key: each.difference("run", "other") for key, each in resampled.items()}, "holm")
    return Differences(
        family, {key: (each.whole["run"], each.whole["other"]) for key, each in resampled.items()}, draws
    )


def changes(
    run: FeatureTables, other: FeatureTables, features: Sequence[str], groups: Sequence[str], *, top: int
) -> list[FeatureChange]:
    """The tables that two runs have in common, with those of one feature in memory at a time.

    Args:
        run: the tables of the run.
        other: those that they are compared with.
        features: to compare, of which either run may lack some.
        groups: to compare.
        top: ids of a feature to list.
    """
    changed = []
    for feature in features:
        sizes, others = run.sizes(feature), other.sizes(feature)
        both = [g for g in groups if g in sizes and g in others and sizes[g][1] == others[g][1]]
        if both:
            changed.append(_feature_change(feature, run.read(feature, both), other.read(feature, both), top=top))
    return changed


def _feature_change(
    feature: str, weights: Mapping[str, Tensor], others: Mapping[str, Tensor], *, top: int
) -> FeatureChange:
    tables, distances = [], {}
    for group, weight in weights.items():
        rows = min(len(weight), len(others[group]))
        own, before = weight[:rows], others[group][:rows]
        distance = row_distances(own, before)
        length = torch.linalg.vector_norm(before, dtype=torch.float64)
        distances[group] = distance
        tables.append(
            TableChange(
                feature=feature,
                group=group,
                rows=rows,
                changed=(distance > 0).double().mean().item(),
                distance=(distance.norm() / length).item(),
                similarity=linear_cka(own, before),
            )
        )
    return FeatureChange(feature, tables, most_changed(distances, None, top=top))
