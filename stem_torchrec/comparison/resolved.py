"""A comparison whose options are checked against its log."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from stem_torchrec.comparison.options import Request, split_names
from stem_torchrec.comparison.parts import Part
from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.files import find_row_groups
from stem_torchrec.data.folder import data_folder
from stem_torchrec.data.footers import fingerprint
from stem_torchrec.data.label_kinds import may_lack_labels
from stem_torchrec.data.listing import RowGroup
from stem_torchrec.data.names import spaces_of
from stem_torchrec.data.schema import Schema, load_schema
from stem_torchrec.losses.table import losses_of_tasks
from stem_torchrec.models.balanced import balance_tasks
from stem_torchrec.models.build import build_model, weights_by_label
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.table import groups_with_tables
from stem_torchrec.models.weight_groups import check_rate_factors, freeze
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.process import trains_on_gpu
from stem_torchrec.starting.source import with_source_path
from stem_torchrec.tables import SHARED, table_configs
from stem_torchrec.training.assembly import fit_sparse_optimizer, placements_by_rules
from stem_torchrec.training.fresh_tables import check_fresh_tables
from stem_torchrec.training.open_fields import OpenFields, filled_in
from stem_torchrec.training.watched_metric import WatchedMetric


def resolve_log(request: Request) -> Request:
    """The request with what depends on the log: its folder, labels and fingerprint, and the pair of tasks.

    Raises UserError if options do not fit the log, so that nothing is trained for a report that cannot be made.
    """
    train, config = request.train, request.config
    path = data_folder(train.data)
    schema = load_schema(path)
    columns = Columns.select(schema, features=train.data.features, labels=train.data.labels, spaces=train.data.spaces)
    train = replace(train, data=replace(train.data, path=path, labels=columns.labels), dry_run=False)
    train = with_source_path(train)
    pair = _pair(config.pair, columns)
    if config.item and config.item not in columns.sparse:
        raise UserError(f"--item is {config.item!r}, but the sparse features are {', '.join(columns.sparse)}.")
    # Read as a group, the item must be one integer in each row; an error names the file where it is not.
    read = replace(columns, group=config.item or columns.group)
    row_groups = {split: find_row_groups(path, split, schema, read) for split in ("train", "valid", config.split)}
    log = {split: fingerprint(of_split) for split, of_split in row_groups.items()}
    WatchedMetric(train.train.metric, columns.labels, has_groups=columns.group is not None)
    resolved = replace(request, train=train, pair=pair, log=log)
    _check_spaces(resolved, schema)
    _check_models(resolved, columns, row_groups["train"])
    parts = [part for parts in resolved.parts().values() for part in parts]
    _check_metric(train, parts, columns)
    for part in parts:
        try:
            metric = part.configure(train).train.metric
            WatchedMetric.of_split(metric, _columns_of(part, train, columns), row_groups["valid"])
        except UserError as error:
            raise _of_part(part, error) from error
    return resolved


def _pair(named: str, columns: Columns) -> tuple[str, str] | None:
    """The two tasks of the comparable samples: those of --pair, or the first two whose labels are 0 and 1, if any."""
    binary = [label for label in columns.labels if label not in columns.not_binary]
    if not named:
        return (binary[0], binary[1]) if len(binary) > 1 else None
    pair = split_names(named)
    if len(set(pair)) != 2 or len(pair) != 2 or set(pair) - set(columns.labels):
        raise UserError(f"--pair is {named!r}, but must be two of {', '.join(columns.labels)}, such as a,b.")
    for label in pair:
        if label in columns.not_binary:
            fix = f"give two of {', '.join(binary)}, or leave it out" if len(binary) > 1 else "leave it out"
            raise UserError(
                f"--pair is {named!r}, but the label of {label!r} is of kind {columns.not_binary[label]}, and the "
                f"comparable samples count positives, which binary labels alone have; {fix}."
            )
    return pair[0], pair[1]


def _check_metric(train: TrainConfig, parts: Sequence[Part], columns: Columns) -> None:
    """Raises UserError if single-task models of tasks of several kinds were judged by what only some of them have."""
    metric, tasks = train.train.metric.partition("/")[0], {part.labels[0] for part in parts if part.alone}
    if metric not in ("auc", "gauc") and len({columns.is_binary(task) for task in tasks}) > 1:
        raise UserError(
            f"--train.metric is {train.train.metric!r}, but each single-task model is judged by its own task, and not "
            f"all of {', '.join(columns.labels)} have {metric}; give --train.metric auc or gauc."
        )


def _columns_of(part: Part, train: TrainConfig, columns: Columns) -> Columns:
    """The columns that a part reads, of those of the log."""
    return replace(columns, labels=part.labels, spaces=part.configure(train).data.spaces)


def _check_spaces(request: Request, schema: Schema) -> None:
    """Raises UserError if a model has a space of its own that is none of the log's."""
    for variant in request.variants.values():
        try:
            spaces_of(variant.configure(request.train).data.spaces, request.train.data.labels, schema)
        except UserError as error:
            raise UserError(f"{variant.place}: {error}") from error


def _check_models(request: Request, columns: Columns, row_groups: Sequence[RowGroup]) -> None:
    """Raises UserError if a model cannot be built, its tables cannot be trained or begin anew, or a rule or rate names
    what none has."""
    train, parts_of_models = request.train, request.parts()
    settings = request.grid.to_check() if request.grid else []
    all_parts = [part for parts in parts_of_models.values() for part in parts]
    _check_tasks(train, columns)
    for name, variant in request.variants.items():
        of_variant = variant.configure(train)
        try:
            _check_tasks(of_variant, columns)
            if variant.sets("sparse.group_learning_rates"):
                _check_rates(of_variant, parts_of_models[name], columns)
        except UserError as error:
            raise UserError(f"{variant.place}: {error}") from error
        for setting in settings:
            try:
                of_setting = setting.configure(of_variant)
                _check_tasks(of_setting, columns)
                _check_rates(of_setting, all_parts, columns)
            except UserError as error:
                raise UserError(f"{variant.place}, {setting.name}: {error}") from error
    _check_rates(train, all_parts, columns)
    lacks: dict[tuple[tuple[str, ...], tuple[tuple[str, str], ...]], bool] = {}
    for part in all_parts:
        of_part = _columns_of(part, train, columns)
        rows = of_part.labels, tuple(of_part.spaces.items())
        if rows not in lacks:
            lacks[rows] = may_lack_labels(row_groups, of_part)
        for each in [part, *(replace(part, setting=setting) for setting in settings)]:
            try:
                _check_part(each.configure(train), of_part, labels_missing=lacks[rows])
            except UserError as error:
                raise _of_part(each, error) from error


def _check_part(config: TrainConfig, columns: Columns, *, labels_missing: bool) -> None:
    """Raises UserError as the run of a part would, as far as that shows without its tables."""
    # What is open until the run begins may have any value here.
    config = filled_in(config, OpenFields(batch_size=1, eval_every=1, eps=1.0, period=1))
    check_fresh_tables(config)
    model = build_model(config.model, columns, config.loss)
    assert isinstance(model.model, MultiTaskModel)
    freeze(model.model, config.train.freeze)
    check_rate_factors(model.model, config.train.rate_factors)
    balance_tasks(model, config.balance)
    try:
        placements = placements_by_rules(config.sharding, table_configs(model))
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}; every model needs rules that fit its tables.") from error
    device = torch.device("cuda" if trains_on_gpu() else "cpu")
    fit_sparse_optimizer(model, config, placements, device=device, labels_missing=labels_missing)


def _check_tasks(train: TrainConfig, columns: Columns) -> None:
    """Raises UserError if weights or losses do not fit the tasks."""
    weights_by_label(train.model.task_weights, columns.labels)
    losses_of_tasks(train.loss, columns.labels, columns.not_binary)


def _check_rates(train: TrainConfig, parts: Sequence[Part], columns: Columns) -> None:
    """Raises UserError if a learning rate is that of a group that none of these models has."""
    groups = {g for part in parts for g in groups_with_tables(part.configure(train).model, part.labels)}
    for group in sorted(set(train.sparse.group_learning_rates) - groups):
        ordered = dict.fromkeys([*columns.labels, *sorted(groups - {SHARED}), SHARED])
        raise UserError(
            f"--sparse.group-learning-rates names {group!r}, but the models have tables of "
            f"{', '.join(g for g in ordered if g in groups)}."
        )


def _of_part(part: Part, error: object) -> UserError:
    file = f"{part.variant.file}: " if part.variant.file else ""
    return UserError(f"{file}{part.place}: {error}")
