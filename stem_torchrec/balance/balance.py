"""The balance of the tasks in a step: from their losses to the loss that is trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from stem_torchrec.balance.shared_output import (
    SharedOutput,
    dot_products,
    gradients_of_tasks,
    replace_gradient,
)
from stem_torchrec.balance.simplex import Numbers
from stem_torchrec.balance.task_gradients import cagrad, gradcraft, mgda, pcgrad
from stem_torchrec.balance.task_weights import State, dwa, dwa_state, uncertainty, uncertainty_state
from stem_torchrec.config import BalanceConfig, TaskGradients
from stem_torchrec.metrics.collectives import mean_over_ranks, world_size


class Balance(nn.Module):
    """Weighs the losses of T tasks, and replaces what the shared tables get of their gradients: `(T,) -> ()`.

    With w the weights of the step and g_t the gradient of w_t L_t at the pooled output of the shared tables,

        loss = sum over t of w_t L_t,   the shared tables get  sum over t of c_t g_t

    where c comes from the dot products of the gradients over the rows of all ranks. All else gets the gradient of the
    loss: what is a task's own has the same bits as without balanced gradients, and the experts above the shared tables
    get the plain sum. All ranks make the same calls; a step of all ranks exchanges T or T + T * T numbers. Where
    gradients are read, the host waits for the device once.

    Args:
        config: the methods.
        tasks: T.
        shared_output: what the shared tables give; None where no gradients are read.

    Example::

        balance = Balance(BalanceConfig(weights="uncertainty"), tasks=2)
        balance(losses)  # in the first step the sum, as all weights are 1
    """

    def __init__(self, config: BalanceConfig, tasks: int, shared_output: SharedOutput | None = None) -> None:
        super().__init__()
        assert shared_output is not None or not config.reads_gradients
        self.config, self.shared_output = config, shared_output
        for name, values in _new_state(config, tasks).items():
            # Not a weight of the model: a checkpoint has it, and weights that are served do not.
            self.register_buffer(name, values, persistent=False)

    @property
    def state(self) -> State:
        """What the methods have learned, by name, which a checkpoint has; steps change it in place."""
        return dict(self.named_buffers())

    def forward(self, losses: Tensor) -> Tensor:
        pooled = None if self.shared_output is None else self.shared_output.take()
        return balanced_loss(losses, pooled, self.state, self.config)


def balance_state(model: nn.Module) -> State:
    """What balancing has learned in a model with its loss, by name; empty where nothing is balanced."""
    states = [module.state for module in model.modules() if isinstance(module, Balance)]
    return states[0] if states else {}


def balance_values(model: nn.Module, tasks: Sequence[str]) -> dict[str, float | None]:
    """The weights and shares of the last step by task, for the log of a run.

    Example::

        balance_values(model, ["finish", "like"])  # {"balance/weights/finish": 0.8, "balance/weights/like": 1.2}
    """
    state = balance_state(model)
    return {
        f"balance/{name}/{task}": value
        for name in ("weights", "shares")
        if name in state
        for task, value in zip(tasks, state[name].tolist(), strict=True)
    }


def balanced_loss(losses: Tensor, pooled: Tensor | None, state: State, config: BalanceConfig) -> Tensor:
    """The weighted sum of the losses (T,), and its gradient at `pooled` replaced where gradients are balanced."""
    if not torch.is_grad_enabled():
        return losses.sum()
    if pooled is None:
        weights = _weights_by_losses(mean_over_ranks(losses.detach().double()), state, config)
        return _weighted_sum(losses, weights, state)
    gradients = gradients_of_tasks(losses, pooled)
    seen = mean_over_ranks(torch.cat([losses.detach().double(), dot_products(gradients).flatten()]))
    # This rank's gradients are those of the mean over all rows times the number of ranks, as its loss is. Here the host
    # waits for the device.
    gram = seen[len(losses) :].view(len(losses), -1).cpu().numpy() / world_size()
    if config.weights == "pareto":
        weights = torch.from_numpy(_combined("mgda", gram, state, config)).to(losses.device)
    else:
        weights = _weights_by_losses(seen[: len(losses)], state, config)
    total = _weighted_sum(losses, weights, state)
    if config.gradients != "sum":
        of_losses = weights.cpu().numpy()
        shares = _combined(config.gradients, gram * np.outer(of_losses, of_losses), state, config)
        state["shares"].copy_(torch.from_numpy(shares))
        parts = [gradient * share for gradient, share in zip(gradients, (shares * of_losses).tolist(), strict=True)]
        replace_gradient(pooled, total, sum(parts[1:], start=parts[0]))
    return total


# The pipeline traces a model with FX, which cannot follow what depends on gradients and states: to FX it is one step.
torch.fx.wrap("balanced_loss")


def _new_state(config: BalanceConfig, tasks: int) -> State:
    ones = torch.ones(tasks, dtype=torch.float64)
    state: State = {}
    if config.weights != "fixed":
        state["weights"] = ones
    if config.weights == "uncertainty":
        state |= uncertainty_state(tasks)
    elif config.weights == "dwa":
        state |= dwa_state(tasks)
    if config.gradients != "sum":
        state["shares"] = ones.clone()
    if config.gradients == "pcgrad":
        state["orders"] = torch.zeros((), dtype=torch.int64)
    elif config.gradients == "gradcraft":
        state["norms"] = torch.zeros(tasks, dtype=torch.float64)
    return state


def _weights_by_losses(losses: Tensor, state: State, config: BalanceConfig) -> Tensor:
    if config.weights == "uncertainty":
        return uncertainty(losses, state, config.rate)
    if config.weights == "dwa":
        return dwa(losses, state, config.temperature, config.period)
    return torch.ones_like(losses)


def _weighted_sum(losses: Tensor, weights: Tensor, state: State) -> Tensor:
    if "weights" in state:
        state["weights"].copy_(weights)
    return (losses * weights.to(losses.dtype)).sum()


def _combined(method: TaskGradients, gram: Numbers, state: State, config: BalanceConfig) -> Numbers:
    """How much of each task's gradient the combination has, (T,); moves the method's state on.

    A task without a gradient in the step, as one without labels, takes no part and counts 1. So does one that alone has
    a gradient, and so do all where a product is not finite, as the step is skipped or the run ends then.
    """
    shares = np.ones(len(gram))
    active = np.flatnonzero(gram.diagonal() > 0)
    if not len(active) or not np.isfinite(gram).all():
        return shares
    among = gram[np.ix_(active, active)]
    if method == "pcgrad":
        shares[active] = pcgrad(among, int(state["orders"]))
        state["orders"].add_(1)
    elif method == "cagrad":
        shares[active] = cagrad(among, config.caution)
    elif method == "gradcraft":
        norms, now = state["norms"].cpu().numpy(), np.sqrt(among.diagonal())
        before = np.where(norms[active] > 0, norms[active], now)
        norms[active] = config.memory * before + (1 - config.memory) * now
        state["norms"].copy_(torch.from_numpy(norms))
        shares[active] = gradcraft(among, norms[active], config.magnitude, config.margin)
    else:
        shares[active] = mgda(among)
    return shares if len(active) > 1 else np.ones(len(gram))
