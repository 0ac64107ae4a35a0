"""A model with its loss whose tasks are balanced: the one place where `--balance` meets a model."""

from stem_torchrec.balance.balance import Balance
from stem_torchrec.balance.shared_output import SharedOutput
from stem_torchrec.config import BalanceConfig
from stem_torchrec.models.frame import MultiTaskModel
from stem_torchrec.models.loss import MultiTaskTrain
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import SHARED


def balance_tasks(train: MultiTaskTrain, config: BalanceConfig) -> None:
    """Balances the tasks in the following steps; does nothing for one task, or if the configuration asks for nothing.

    Call it before sharding, as it adds what a checkpoint has to keep, and on all ranks.

    Raises UserError where gradients are to be read at shared tables that the model does not have, or does not train,
    and for a period of an epoch, whose steps only a run knows.

    Example::

        train = build_model(config.model, columns)
        balance_tasks(train, BalanceConfig(weights="uncertainty", gradients="pcgrad"))
    """
    model = train.model
    assert isinstance(model, MultiTaskModel)
    if not config.is_on or len(model.tasks) == 1:
        return
    if config.weights == "dwa" and not config.period:
        raise UserError("--balance.period is 0, an epoch, whose steps only a run knows; give a number of steps.")
    if config.reads_gradients:
        _check_shared_tables(model, config)
        model.shared_output = SharedOutput()
    train.balance = Balance(config, len(model.tasks), model.shared_output)


def _check_shared_tables(model: MultiTaskModel, config: BalanceConfig) -> None:
    option = f"--balance.gradients is {config.gradients}"
    if config.gradients == "sum":
        option = f"--balance.weights is {config.weights}"
    if SHARED not in model.sparse_arch.groups:
        raise UserError(
            f"{option}, which reads the tasks' gradients at the shared tables, but {type(model).__name__} has none; "
            "leave it out, or choose a model whose tasks share tables."
        )
    if SHARED in model.frozen:
        raise UserError(
            f"{option}, which reads the tasks' gradients at the shared tables, but --train.freeze does not train them; "
            "leave one of both out."
        )
