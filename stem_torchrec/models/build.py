"""From a configuration and the columns of a log to a model with its loss: the one place where models meet config."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from stem_torchrec.config import LossConfig, ModelConfig
from stem_torchrec.config.loss import of_task
from stem_torchrec.data.columns import Columns
from stem_torchrec.data.label_kinds import refusal_of_kinds
from stem_torchrec.losses.table import check_tasks, losses_of_tasks
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.links import links_of, typed_links
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.models.options import OwnTableOptions
from stem_torchrec.models.sequential import ESMM
from stem_torchrec.models.table import MODELS, options_of, table_choice_of
from stem_torchrec.runtime.errors import UserError, nearest
from stem_torchrec.tables import build_collection, groups_of


def build_model(
    config: ModelConfig, columns: Columns, loss: LossConfig | None = None, *, table_device: str = "meta"
) -> MultiTaskTrain:
    """The model that `config.arch` names, with its loss; the tables stay on the meta device until they are sharded.

    Raises UserError for an unknown model or another model's options, task weights or losses that do not fit the tasks,
    tasks that do not fit the model, a size below 1, a choice of tables that does not fit the columns, or too few tasks
    for the model.
    """
    tasks, options, loss = columns.labels, options_of(config), loss or LossConfig()
    weights = weights_by_label(options.task_weights, tasks)
    check_rows_within(loss, columns)
    groups_of(tasks)  # Refuses labels that cannot name a group, whichever groups the model has.
    line, choice = MODELS[options.arch], table_choice_of(options)
    collection = build_collection(
        list(columns.sparse.values()),
        line.groups(tasks),
        embedding_dim=options.embedding_dim,
        std=options.embedding_std,
        layout=options.layout,
        table_choice=choice,
        device=table_device,
    )
    common = {field.name for field in fields(OwnTableOptions)}
    own = {field.name: getattr(options, field.name) for field in fields(options) if field.name not in common}
    model = line.model(
        collection,
        tasks,
        tower_hidden=options.tower_hidden,
        dropout=options.dropout,
        dense_in_features=len(columns.dense),
        dense_out_features=options.embedding_dim,
        embedding_dropout=options.embedding_dropout,
        embedding_l2=options.embedding_l2,
        table_choice=choice,
        links=links_of(columns),
        **own,
    )
    if isinstance(model, ESMM):
        _check_kinds(options.arch, columns)
    losses = losses_of_tasks(loss, tasks, columns.not_binary)
    return MultiTaskTrain(model, weights, losses)


def _check_kinds(arch: str, columns: Columns) -> None:
    """Raises UserError for a label that is not binary, of a model that multiplies probabilities."""
    fix = "choose another --model.arch, or leave the task out, as in {labels}"
    if refusal := refusal_of_kinds(columns, f"--model.arch {arch}, which multiplies probabilities,", fix=fix):
        raise UserError(refusal)


def start_links(train: MultiTaskTrain, statistics: Mapping[str, tuple[float, ...]]) -> None:
    """Starts the outputs of tasks that are not binary from the statistics of their training labels.

    Call it before sharding. Weights that are loaded afterwards have their own.
    """
    assert isinstance(train.model, MultiTaskModel)
    for task, link in typed_links(train.model.links).items():
        link.start(statistics[task])


def weights_by_label(weights: Sequence[float] | dict[str, float], tasks: Sequence[str]) -> tuple[float, ...]:
    """The weights of the tasks' losses, in their order; none at all is all 1.

    Raises UserError for weights that are not one above 0 for each task, and for a name that no task has.

    Example::

        weights_by_label({"like": 3.0}, ["finish", "like"])  # (1.0, 3.0)
    """
    if isinstance(weights, dict):
        check_tasks("--model.task-weights", weights, tasks)
        by_task: dict[str, float] = weights
        weights = [of_task(by_task, task, 1.0) for task in tasks] if by_task else []
    if weights and (len(weights) != len(tasks) or min(weights) <= 0):
        raise UserError(
            f"--model.task-weights is {' '.join(map(str, weights))}, but needs one number above 0 for each of "
            f"{', '.join(tasks)}."
        )
    return tuple(weights)


def check_rows_within(loss: LossConfig, columns: Columns) -> None:
    """Raises UserError for a feature that the run does not read; an empty name is none."""
    known = list(columns.sparse)
    for feature in loss.rows_within.values() if isinstance(loss.rows_within, dict) else [loss.rows_within]:
        if feature and feature not in known:
            raise UserError(
                f"--loss.rows-within is {feature!r}, but the sparse features are {', '.join(known)}"
                f"{nearest(feature, known) or '.'}"
            )
