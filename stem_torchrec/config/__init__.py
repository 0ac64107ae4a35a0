"""The configuration of a run: frozen dataclasses, and how they are read from a command line or YAML.

A field stands in one place with its type, limits, default and help. Reading order: run.py, and the sections that it
joins: data.py, synthetic.py, model.py, loss.py, optimizers.py, balance.py, sharding.py, start.py, loop.py, delta.py;
then command_line.py, files.py, fields.py (limits and error sentences), path_fields.py, serialization.py, narrowed.py,
yaml_text.py, json_text.py, formats.py (format versions of files). Import the names below. May import `runtime` only.
"""

from stem_torchrec.config.balance import BalanceConfig, TaskGradients, TaskWeights
from stem_torchrec.config.command_line import (
    option_names,
    parse_arguments,
    parse_known_arguments,
)
from stem_torchrec.config.data import DataConfig, OnBadRow
from stem_torchrec.config.delta import DeltaConfig, RowFormat, TablePrecision
from stem_torchrec.config.files import dump_config, what_is_trained
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig, Precision
from stem_torchrec.config.loss import LossConfig
from stem_torchrec.config.model import Arch, Layout, ModelConfig, Share, Width
from stem_torchrec.config.optimizers import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    SparseOptimizerName,
)
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import check_fields
from stem_torchrec.config.sharding import Communication, InputDist, Kernel, ShardingConfig, ShardingType
from stem_torchrec.config.start import NewRows, StartConfig
from stem_torchrec.config.synthetic import DaysConfig, SyntheticConfig

__all__ = [
    "Arch",
    "BalanceConfig",
    "CheckpointConfig",
    "Communication",
    "DataConfig",
    "DaysConfig",
    "DeltaConfig",
    "DenseOptimizerConfig",
    "InputDist",
    "Kernel",
    "Layout",
    "LoopConfig",
    "LossConfig",
    "ModelConfig",
    "NewRows",
    "OnBadRow",
    "Precision",
    "RowFormat",
    "ScheduleConfig",
    "ShardingConfig",
    "ShardingType",
    "Share",
    "SparseOptimizerConfig",
    "SparseOptimizerName",
    "StartConfig",
    "SyntheticConfig",
    "TablePrecision",
    "TaskGradients",
    "TaskWeights",
    "TrainConfig",
    "Width",
    "check_fields",
    "dump_config",
    "option_names",
    "parse_arguments",
    "parse_known_arguments",
    "what_is_trained",
]
