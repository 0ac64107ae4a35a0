"""The loss around a model, in the form that TorchRec's train pipelines call."""

from collections.abc import Mapping, Sequence, Sized

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch

from stem_torchrec.balance.balance import Balance
from stem_torchrec.data.label_counts import CountedBatch, weights_of
from stem_torchrec.data.unseen_ids import UNSEEN
from stem_torchrec.losses.pointwise import bce, mean_by_task
from stem_torchrec.losses.step_rows import NO_GROUP
from stem_torchrec.losses.table import TaskLoss, compared_within
from stem_torchrec.losses.task_losses import task_losses
from stem_torchrec.models.outputs import outputs_of
from stem_torchrec.runtime.errors import UserError


class MultiTaskTrain(nn.Module):
    """The loss of a batch: a weighted sum over the tasks of the mean binary cross entropy of the rows with a label.

    `losses` are other losses of tasks, see `losses/table.py`. A model that puts out more than its logits, or whose
    tasks are numbers or levels, declares it by `outputs` (`models/outputs.py`), as those of this package do.

    The mean is over the rows of all ranks if the batch comes from a LabelCounter: a rank's loss is the sum over its
    rows, divided by the labels of all ranks and multiplied by the number of ranks, because data parallelism and
    TorchRec's tables average gradients over the ranks. Otherwise it is the mean over this rank's rows. A task without a
    label adds nothing; the loss of a frozen task counts as any other, and trains only what is not frozen. Where the
    labels of a batch have weights w, a task's mean of losses l is sum(w l) / sum(w).

    Args:
        model: maps dense features (B, N) and a KeyedJaggedTensor to logits (B, T), and to what it declares: STEM, Duet,
            TorchRec's DLRM, or yours.
        task_weights: T weights above 0; 1 for each task if empty.
        losses: of the T tasks; the binary cross entropy of each if empty.

    `forward` takes a batch with labels of 0, 1 or NaN (missing), of any type, (B, T), or (B,) for one task. It returns
    the loss, and (losses (T,), scores (B, T)), detached and in fp32: the logits of binary tasks, and the predictions of
    others. The mean of the losses over the ranks is the mean over all rows. Of a model with streams the loss has the
    sum over these, and the losses are the means.

    Raises UserError for weights or losses that are not one for each task, and for numbers or levels without losses; in
    `forward` for other shapes.

    Example::

        train = MultiTaskTrain(Duet(collection, tasks=["finish", "like"]))
        loss, (losses, logits) = train(batch)  # (), (2,), (B, 2)
    """

    task_weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        task_weights: Sequence[float] = (),
        losses: Sequence[TaskLoss] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs_of(model)
        self.losses = tuple(losses)
        self.rows_within = tuple(feature for feature in compared_within(losses) if feature)
        weights = torch.tensor(task_weights, dtype=torch.float32) if task_weights else None
        self.register_buffer("task_weights", weights, persistent=False)
        tasks, links = self.outputs.tasks, self.outputs.links
        self.links = {i: links[task] for i, task in enumerate(tasks) if task in links}
        """From logits to predictions, by column."""
        if links and not losses:
            raise UserError(
                f"the labels of {', '.join(links)} are numbers or levels, whose losses MultiTaskTrain needs; give "
                "losses=losses_of_tasks(...), one for each task."
            )
        _check_one_each("task_weights", task_weights, tasks)
        _check_one_each("losses", losses, tasks)
        self.balance: Balance | None = None
        """Weighs the tasks against each other (`models/balanced.py`); the plain sum without it."""
        self.trained_by: Mapping[str, frozenset[int]] = {}
        """Tasks that train a parameter, by name (`models/trained_by.py`); all tasks where the name is missing."""

    def forward(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs = self.model(batch.dense_features, batch.sparse_features).float()
        logits, *streams = self.outputs.split(outputs)
        labels, weights = labels_like(logits, batch.labels), weights_like(logits, batch)
        per_rank = labels_per_rank(batch, logits)
        groups = {feature: groups_of_rows(batch, feature) for feature in self.rows_within}
        losses = [self._losses(each, labels, per_rank, weights, groups) for each in streams or [logits]]
        if self.outputs.added_losses is not None:
            losses.append(self.outputs.added_losses(outputs, labels, per_rank, weights))
        summed = torch.stack(losses).sum(dim=0)
        weighted = summed if self.task_weights is None else summed * self.task_weights
        total = weighted.sum() if self.balance is None else self.balance(weighted)
        return total, (summed.detach() / max(self.outputs.streams, 1), self._scores(logits.detach()))

    def _losses(
        self,
        logits: Tensor,
        labels: Tensor,
        per_rank: Tensor | None,
        weights: Tensor | None,
        groups: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of each task, (T,)."""
        if not self.losses:
            return multi_task_loss(logits, labels, per_rank, weights)
        known = labels.nan_to_num() if self.links else labels
        linked = {i: (each.outputs(logits[:, i]), each.targets(known[:, i])) for i, each in self.links.items()}
        return task_losses(
            self.losses, logits, labels, per_rank=per_rank, weights=weights, groups=groups, linked=linked
        )

    def _scores(self, logits: Tensor) -> Tensor:
        """The logits of binary tasks and the predictions of the others, (B, T)."""
        if not self.links:
            return logits
        columns = range(len(self.losses))
        return torch.stack([self.links[i](logits[:, i]) if i in self.links else logits[:, i] for i in columns], dim=1)


def _check_one_each(name: str, values: Sized, tasks: Sequence[str]) -> None:
    """Raises UserError unless there is a value for each task, or none; of a model that declares no tasks all fit."""
    if values and tasks and len(values) != len(tasks):
        raise UserError(
            f"MultiTaskTrain has {len(values)} {name}, but the model has the tasks {', '.join(tasks)}; give one for "
            "each, or none."
        )


def multi_task_loss(
    logits: Tensor, labels: Tensor, per_rank: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Mean binary cross entropy per task, (T,), of logits and labels (B, T); a missing label is NaN.

    Args:
        logits: of this rank's rows.
        labels: 0, 1 or NaN.
        per_rank: what to divide the sums by, (T,): the labels of all ranks over the number of ranks; by default the
            labels given, each times its weight.
        weights: of the labels, (B, T); 1 for each by default.

    Example::

        logits = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        multi_task_loss(logits, torch.tensor([[1.0, math.nan], [0.0, 1.0]]))  # [0.693, 0.127]
    """
    return mean_by_task(bce(logits, labels.nan_to_num()), labels, per_rank, weights)


def labels_like(logits: Tensor, labels: Tensor) -> Tensor:
    """The labels (B, T), or (B,) for one task, of any type, as floats (B, T) of the logits' type.

    Raises UserError if their shape does not fit the logits.
    """
    column = labels[:, None] if labels.shape == logits.shape[:1] else labels
    if logits.dim() != 2 or column.shape != logits.shape:
        raise UserError(
            f"the model's logits are {tuple(logits.shape)} and the batch's labels {tuple(labels.shape)}; both must be "
            "(rows, tasks), or the labels (rows,) for one task; a model that puts out more columns declares them by "
            "`outputs`, see docs/plug_in.md."
        )
    return column.to(logits.dtype)


def labels_per_rank(batch: Batch, logits: Tensor) -> Tensor | None:
    """The labels of all ranks over the number of ranks, (T,), beside the logits; None if they have not been counted."""
    if not isinstance(batch, CountedBatch):
        return None
    # A copy of T numbers, for which the host does not wait.
    return batch.labels_of_step.per_rank().to(logits.device, logits.dtype, non_blocking=True)


def weights_like(logits: Tensor, batch: Batch) -> Tensor | None:
    """The weights of a batch's labels as floats (B, T) of the logits' type; None if they have none."""
    weights = weights_of(batch)
    return None if weights is None else weights.to(logits.dtype)


def groups_of_rows(batch: Batch, feature: str) -> Tensor:
    """The first id that each row has of a feature, (B,), NO_GROUP without one or with that of unseen values."""
    bags = batch.sparse_features[feature]
    ids, offsets = bags.values(), bags.offsets()[:-1].long()
    known = bags.lengths() > 0
    if not len(ids):
        return torch.full_like(offsets, NO_GROUP)
    first = ids[offsets.clamp(max=len(ids) - 1)]
    return torch.where(known & (first != UNSEEN), first, NO_GROUP)


# The pipeline traces a model with FX, which cannot follow a decision about shapes or types: each is one step to it.
torch.fx.wrap("labels_like")
torch.fx.wrap("groups_of_rows")
torch.fx.wrap("labels_per_rank")
torch.fx.wrap("task_losses")
torch.fx.wrap("weights_like")
