"""The optimizer of experts, gates and towers, which keeps the tasks apart to the bit.

A gradient of zero is a step for Adam: moments decay and push, and weight decay pulls. Therefore a step in which no rank
has a label of a task takes no step on the parameters that only this task trains. Clipping scales the gradients of
parameters that the same tasks train together, so that a task's large gradient does not shrink another task's step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.optim.clipping import GradientClipping, GradientClippingOptimizer
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper

from stem_torchrec.config import DenseOptimizerConfig
from stem_torchrec.data.label_counts import CountedBatch
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.tables import table_of


def build_dense_optimizer(
    parameters: Mapping[str, Tensor],
    config: DenseOptimizerConfig,
    *,
    clip_norm: float | None = None,
    trained_by: Mapping[str, frozenset[int]],
    factors: Mapping[str, float],
) -> list[KeyedOptimizer]:
    """Adam or AdamW: one optimizer, or one for the parameters of each set of tasks if it clips gradients.

    Frozen parameters get no gradient, so that their states are kept and make no steps.

    Args:
        parameters: by name.
        config: the optimizer.
        clip_norm: largest norm of the gradient of the parameters that the same tasks train.
        trained_by: tasks that train a parameter, by name; all tasks where the name is missing.
        factors: on the learning rate of a parameter, by name.
    """
    make = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    arguments: dict[str, Any] = {
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }

    def build(parameters: Mapping[str, Tensor]) -> KeyedOptimizer:
        by_factor: dict[float, list[Tensor]] = {}
        for name, parameter in parameters.items():
            by_factor.setdefault(factors[name], []).append(parameter)
        groups = [{"params": each, "lr": config.learning_rate * factor} for factor, each in by_factor.items()]
        return KeyedOptimizerWrapper(parameters, lambda _: with_moments(make(groups, **arguments)))

    if clip_norm is None:
        return [build(parameters)]
    sets: dict[frozenset[int] | None, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        sets.setdefault(trained_by.get(name), {})[name] = parameter
    return [
        GradientClippingOptimizer(build(of_set), GradientClipping.NORM, max_gradient=clip_norm)
        for of_set in sets.values()
    ]


def with_moments(adam: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Creates the states that Adam or AdamW creates in a parameter's first step, with the same values.

    So a checkpoint has those of a task that has had no label yet, and of a frozen one.
    """
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if group["fused"] else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return adam


def leave_out_unlabeled(
    optimizer: CombinedOptimizer, pipeline: TrainPipelineSparseDist, model: DistributedModelParallel
) -> None:
    """Keeps `optimizer` from steps on dense parameters that no task with a label in the step trains.

    Their weights, moments and counts of steps then stay the same bits. All ranks know the same labels. Parameters of
    models without `trained_by`, and steps on batches that do not come from a LabelCounter, are left as they are.

    Args:
        optimizer: of the model.
        pipeline: calls the optimizer.
        model: sharded.
    """
    trained_by = tasks_that_train(model)
    # Not of tables: their optimizers leave rows with a gradient of zero alone, and TorchRec keeps the gradients of all
    # data_parallel tables in one tensor.
    parameters = [
        (parameter, trained_by[name])
        for name, parameter in model.named_parameters()
        if name in trained_by and table_of(name) is None
    ]

    def drop_gradients(*_: Any) -> None:
        batch = pipeline.batches[0] if pipeline.batches else None
        if not isinstance(batch, CountedBatch):
            return
        labeled = {task for task, has_labels in enumerate(batch.labels_of_step.labeled()) if has_labels}
        for parameter, tasks in parameters:
            if not tasks & labeled:
                parameter.grad = None

    # After the backward pass, in which all ranks exchange all gradients, whether they are zero or not.
    optimizer.register_step_pre_hook(drop_gradients)


def tasks_that_train(model: DistributedModelParallel) -> Mapping[str, frozenset[int]]:
    """The tasks that train each parameter of a sharded model, by name."""
    train: nn.Module = model.module
    return train.trained_by if isinstance(train, MultiTaskTrain) else {}
