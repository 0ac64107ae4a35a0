"""Numbers of a configuration that make no sense, refused before anything is built."""

import math
from operator import attrgetter
from typing import Any

from stem_torchrec.config.run import TrainConfig
from stem_torchrec.runtime.errors import UserError

_LIMITS: dict[str, tuple[float, float]] = {
    "data.batch_size": (1, math.inf),
    "data.eval_batch_size": (1, math.inf),
    "data.shuffle_rows": (0, math.inf),
    "data.num_workers": (0, math.inf),
    "data.max_bad_share": (0, 1),
    "model.num_layers": (1, math.inf),
    "model.num_shared_experts": (1, math.inf),
    "model.num_task_experts": (1, math.inf),
    "model.expert_hidden": (1, math.inf),
    "model.gate_hidden": (1, math.inf),
    "model.tower_hidden": (1, math.inf),
    "model.dropout": (0, 0.999),
    "model.embedding_dropout": (0, 0.999),
    "model.embedding_l2": (0, 1e6),
    "model.embedding_std": (0, 100),
    "sparse.learning_rate": (0, 1e6),
    "sparse.group_learning_rates": (0, 1e6),
    "sparse.weight_decay": (0, 1e6),
    "sparse.betas": (0, 0.9999999),
    "dense.learning_rate": (0, 1e6),
    "dense.weight_decay": (0, 1e6),
    "dense.betas": (0, 0.9999999),
    "schedule.warmup_steps": (0, math.inf),
    "sharding.hbm_gb": (1e-3, 1e6),
    "train.epochs": (1, math.inf),
    "train.max_steps": (1, math.inf),
    "train.eval_every": (1, math.inf),
    "train.patience": (1, math.inf),
    "train.clip_norm": (1e-12, math.inf),
    "train.log_every": (1, math.inf),
    "train.timeout": (1, 1e6),
    "checkpoint.minutes": (0, math.inf),
    "checkpoint.steps": (1, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.max_failures": (0, math.inf),
    "seed": (0, 2**32 - 1),
}
"""Least and greatest value by field; a list or dictionary is held to them item by item, and None is no value."""


def check_limits(config: TrainConfig) -> None:
    """Raises UserError with the option, its value and the limit for the first number outside of its limits."""
    for path, (least, greatest) in _LIMITS.items():
        value: Any = attrgetter(path)(config)
        if isinstance(value, dict):
            value = tuple(value.values())
        for number in value if isinstance(value, tuple) else (value,):
            # NaN is outside of any limits.
            if number is not None and not least <= number <= greatest:
                bound = f"at least {least:g}" if math.isinf(greatest) else f"from {least:g} to {greatest:g}"
                raise UserError(f"--{path.replace('_', '-')} is {number}, but must be {bound}.")
