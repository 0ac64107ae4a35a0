"""Batch size, evaluations and more by the number of rows and ranks, where a configuration leaves them open with 0."""

import math
from dataclasses import replace

from stem_torchrec.config import SparseOptimizerConfig, TrainConfig

LEAST_BATCH, LARGEST_BATCH = 32, 4096
"""Rows per rank and step; the largest is the published batch."""
EVALUATIONS_PER_EPOCH = 4
STEPS_BETWEEN = 16
"""Fewest steps between two evaluations of an epoch that has as many."""


def batch_size_for(rows: int, ranks: int) -> int:
    """Rows per rank and step: the largest power of two with which all ranks take at most 3 * sqrt(rows), within limits.

    So both the batch and the steps of an epoch grow with the log: small batches make enough steps on a short log, and
    cost time on a long one. 1024 for 150,000 rows was best on KuaiRand-Pure; 4096 is published for millions of rows.

    Example::

        batch_size_for(150_000, 1)  # 1024: 147 steps
        batch_size_for(150_000, 2)  # 512: as many rows in a step of both ranks
        batch_size_for(874_000, 1)  # 2048: 427 steps
    """
    largest = max(int(3 * math.sqrt(rows)) // ranks, 1)
    return min(max(1 << (largest.bit_length() - 1), LEAST_BATCH), LARGEST_BATCH)


def eval_every_for(steps: int) -> int:
    """Steps between two evaluations for an epoch of `steps` steps: a quarter of them, but not fewer than STEPS_BETWEEN.

    Example::

        eval_every_for(147)  # 36
        eval_every_for(40)   # 16
        eval_every_for(5)    # 5
    """
    return max(steps // EVALUATIONS_PER_EPOCH, min(steps, STEPS_BETWEEN))


def eps_for(optimizer: str, rows: int) -> float:
    """The eps of the tables' optimizer for steps of so many rows on all ranks; the default where it is none of Adagrad.

    Adagrad divides a gradient g by the root of its summed squares, so the first step of a table row is as long for a
    gradient that says nothing as for one that says much; next to 0, where tables start, rows of rare ids are then set
    by chance. With eps that step is g / (|g| + eps). A row of the log adds to the mean loss in proportion to 1 / rows,
    and to the gradients likewise, so eps goes with 1 / rows. Duchi et al., JMLR 2011, has eps as delta.

    Example::

        eps_for("rowwise_adagrad", 1024)  # 9.8e-05
    """
    return 0.1 / rows if optimizer in ("adagrad", "rowwise_adagrad") else SparseOptimizerConfig().eps


def choose_steps(config: TrainConfig, rows: int, ranks: int) -> TrainConfig:
    """The configuration with the batch size, the steps between evaluations, the eps and the period of task weights, an
    epoch, that it leaves open with 0.

    Args:
        config: of a run.
        rows: of the training split.
        ranks: that train together.
    """
    data, train, sparse, balance = config.data, config.train, config.sparse, config.balance
    if not data.batch_size:
        data = replace(data, batch_size=batch_size_for(rows, ranks))
    steps = _steps(data.batch_size, rows, ranks)
    if train.eval_every == 0:
        train = replace(train, eval_every=eval_every_for(steps))
    if not sparse.eps:
        sparse = replace(sparse, eps=eps_for(sparse.name, data.batch_size * ranks))
    if not balance.period:
        balance = replace(balance, period=steps)
    return replace(config, data=data, train=train, sparse=sparse, balance=balance)


def describe_steps(config: TrainConfig, rows: int, ranks: int, *, resumed: bool = False) -> str:
    """What a run takes, and why, in a line.

    Args:
        config: what `choose_steps` returns.
        rows: of the training split.
        ranks: that train together.
        resumed: whether an earlier run in its folder had chosen.

    Example::

        describe_steps(choose_steps(log(), 150_000, 2), 150_000, 2)
        # "settings: recipe log (the default with --data.path): batches of 512 for 150,000 rows on 2 ranks, an
        # evaluation after each epoch of 147 steps, tables begin anew with each epoch, stops after 2 without a gain"
    """
    default = " (the default with --data.path)" if config.recipe == "log" else ""
    train, steps = config.train, _steps(config.data.batch_size, rows, ranks)
    may_stop = train.eval_every or train.epochs > 1
    parts = [
        f"batches of {config.data.batch_size:,}{', as the run had,' if resumed else ''} for {rows:,} rows on {ranks} "
        f"rank{'s' * (ranks > 1)}",
        f"an evaluation every {train.eval_every} of {steps} steps"
        if train.eval_every
        else f"an evaluation after {'each' if train.epochs > 1 else 'the one'} epoch of {steps} steps",
        *(["tables begin anew with each epoch"] if train.fresh_tables and train.epochs > 1 else []),
        *([f"stops after {train.patience} without a gain"] if train.patience and may_stop else []),
    ]
    return f"settings: {f'recipe {config.recipe}{default}: ' if config.recipe else ''}{', '.join(parts)}"


def _steps(batch_size: int, rows: int, ranks: int) -> int:
    """Steps of an epoch."""
    return -(-rows // (batch_size * ranks))
