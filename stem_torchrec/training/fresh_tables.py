"""Tables that begin anew with each epoch, so that further epochs train what stands above them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer

from stem_torchrec.config import TrainConfig
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.hang_detection import set_activity
from stem_torchrec.runtime.internals.torchrec_hooks import forget_cached_rows
from stem_torchrec.runtime.progress import log_rank0
from stem_torchrec.sharding.shard import fill_tables
from stem_torchrec.tables import clear_states, sharded_collections
from stem_torchrec.training.callbacks import Callback
from stem_torchrec.training.meter import Meter
from stem_torchrec.training.sparse_optimizers import SPARSE_OPTIMIZERS

if TYPE_CHECKING:
    from stem_torchrec.training.loop import TrainLoop


class FreshTables(Callback):
    """Gives the tables the values that their seed draws, and their optimizer fresh states, after each epoch.

    What code has filled them with since, such as `warm_start`, is lost.

    Rows of ids that occur a few times learn their labels by heart in one pass, and a second pass over the same rows
    makes predictions worse ("one-epoch overfitting"). Experts, gates and towers gain from more passes, most of all
    those of tasks with few positives. With new tables in each epoch they see each row with other embeddings. The best
    weights are those at the end of some epoch, with the tables of that epoch.

    Source: Fan et al., "Multi-Epoch learning with Data Augmentation for Deep Click-Through Rate Prediction", arXiv
    2407.01607, whose MEDA draws other initial values for each epoch. Here they are the same, and a run resumes to the
    bit without keeping them; at N(0, 1e-4) both are next to 0.

    Args:
        model: sharded.
        optimizer: of the model.
        meter: of the run's log, whose speed leaves this out.
        seed: of the run.
    """

    def __init__(
        self, model: DistributedModelParallel, optimizer: CombinedOptimizer, meter: Meter, *, seed: int
    ) -> None:
        self._model, self._optimizer, self._meter, self._seed = model, optimizer, meter, seed

    def before_epoch(self, loop: TrainLoop) -> None:
        """Begins the tables of this rank anew."""
        set_activity("beginning the tables anew")
        seconds = self._meter.pause(lambda: begin_anew(self._model, self._optimizer, seed=self._seed))
        log_rank0(f"step {loop.state.step}  paused {seconds:.2f} s, the tables begin anew")


@torch.no_grad()
def begin_anew(model: DistributedModelParallel, optimizer: CombinedOptimizer, *, seed: int) -> None:
    """Gives this rank's tables their initial values, and the states of their optimizers 0."""
    fill_tables(model, seed=seed)
    clear_states(optimizer, of_tables_alone=True)
    for _, collection in sharded_collections(model):
        forget_cached_rows(collection)


def fresh_tables(
    config: TrainConfig, model: DistributedModelParallel, optimizer: CombinedOptimizer, meter: Meter
) -> list[FreshTables]:
    """The callback, if the run has it."""
    return [FreshTables(model, optimizer, meter, seed=config.seed)] if config.train.fresh_tables else []


def check_fresh_tables(config: TrainConfig) -> None:
    """Raises UserError where tables that begin anew would lose what another run has learned, or moments go wrong."""
    if not config.train.fresh_tables or config.train.epochs == 1:
        return
    if config.start_from is not None:
        raise UserError(
            f"--train.fresh-tables would empty after an epoch what the tables have from {config.start_from}; give "
            "--train.no-fresh-tables, or --train.epochs 1."
        )
    if config.train.freeze:
        kept = ", ".join(config.train.freeze)
        raise UserError(
            f"--train.freeze keeps the tables of {kept}, which --train.fresh-tables would empty after an epoch; give "
            "--train.no-fresh-tables, or --train.epochs 1."
        )
    if SPARSE_OPTIMIZERS[config.sparse.name].has_moments:
        raise UserError(
            f"--train.fresh-tables does not serve {config.sparse.name}, which corrects its moments by a count of steps "
            "that goes on; give --train.no-fresh-tables, or --sparse.name rowwise_adagrad, adagrad or sgd."
        )
