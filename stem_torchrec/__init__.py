"""STEM, shared and task-specific embeddings for multi-task ranking, on TorchRec.

`from stem_torchrec import STEM, Trainer` works for every name in `__all__`, which is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stem_torchrec.runtime.internals.needless_warnings import silence_needless_warnings
from stem_torchrec.runtime.versions import check_versions

if TYPE_CHECKING:
    from stem_torchrec.config import TrainConfig
    from stem_torchrec.data.schema import SparseFeature, load_schema
    from stem_torchrec.metrics.multi_task import MultiTaskMetrics
    from stem_torchrec.models.duet import Duet, DuetOptions
    from stem_torchrec.models.loss import MultiTaskTrain
    from stem_torchrec.models.stem import STEM, STEMOptions
    from stem_torchrec.runtime.process import join_process_group
    from stem_torchrec.sharding.once import OnceSharder
    from stem_torchrec.sharding.planner import plan_sharding
    from stem_torchrec.sharding.shard import shard
    from stem_torchrec.tables import SparseArch, embedding_bag_configs
    from stem_torchrec.training.configuration import load_config
    from stem_torchrec.training.loop import fit
    from stem_torchrec.training.trainer import Trainer
    from stem_torchrec.transfer.add_tasks import add_tasks
    from stem_torchrec.transfer.warm_start import warm_start

_HOMES = {
    "STEM": "models.stem",
    "Duet": "models.duet",
    "DuetOptions": "models.duet",
    "MultiTaskMetrics": "metrics.multi_task",
    "MultiTaskTrain": "models.loss",
    "OnceSharder": "sharding.once",
    "STEMOptions": "models.stem",
    "SparseArch": "tables",
    "SparseFeature": "data.schema",
    "TrainConfig": "config",
    "Trainer": "training.trainer",
    "add_tasks": "transfer.add_tasks",
    "embedding_bag_configs": "tables",
    "fit": "training.loop",
    "join_process_group": "runtime.process",
    "load_config": "training.configuration",
    "load_schema": "data.schema",
    "plan_sharding": "sharding.planner",
    "shard": "sharding.shard",
    "warm_start": "transfer.warm_start",
}
"""The module of each public name."""

__all__ = [
    "STEM",
    "Duet",
    "DuetOptions",
    "MultiTaskMetrics",
    "MultiTaskTrain",
    "OnceSharder",
    "STEMOptions",
    "SparseArch",
    "SparseFeature",
    "TrainConfig",
    "Trainer",
    "add_tasks",
    "embedding_bag_configs",
    "fit",
    "join_process_group",
    "load_config",
    "load_schema",
    "plan_sharding",
    "shard",
    "warm_start",
]

check_versions()
silence_needless_warnings()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
