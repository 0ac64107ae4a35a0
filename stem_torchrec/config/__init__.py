"""The configuration of a run: frozen dataclasses, recipes, and how they are read from a command line or YAML.

A field stands in one place with its type, limits, default and help. Reading order: run.py, and the sections that it
joins: data.py, synthetic.py, model.py, optimizers.py, sharding.py, loop.py; then recipes.py, command_line.py, files.py,
fields.py (limits and error sentences), serialization.py, yaml_text.py, formats.py (format versions of files).
Import the names below. May import `runtime` only.
"""

from stem_torchrec.config.command_line import (
    option_names,
    parse_arguments,
    parse_known_arguments,
    run_main,
)
from stem_torchrec.config.data import DataConfig, OnBadRow
from stem_torchrec.config.files import config_from_command_line, dump_config, load_config, what_is_trained
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig, Precision
from stem_torchrec.config.model import Arch, GateInput, Groups, Layout, ModelConfig
from stem_torchrec.config.optimizers import (
    DenseOptimizerConfig,
    ScheduleConfig,
    SparseOptimizerConfig,
    SparseOptimizerName,
)
from stem_torchrec.config.recipes import RECIPES
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.serialization import check_fields
from stem_torchrec.config.sharding import Communication, InputDist, Kernel, ShardingConfig, ShardingType
from stem_torchrec.config.synthetic import SyntheticConfig

__all__ = [
    "RECIPES",
    "Arch",
    "CheckpointConfig",
    "Communication",
    "DataConfig",
    "DenseOptimizerConfig",
    "GateInput",
    "Groups",
    "InputDist",
    "Kernel",
    "Layout",
    "LoopConfig",
    "ModelConfig",
    "OnBadRow",
    "Precision",
    "ScheduleConfig",
    "ShardingConfig",
    "ShardingType",
    "SparseOptimizerConfig",
    "SparseOptimizerName",
    "SyntheticConfig",
    "TrainConfig",
    "check_fields",
    "config_from_command_line",
    "dump_config",
    "load_config",
    "option_names",
    "parse_arguments",
    "parse_known_arguments",
    "run_main",
    "what_is_trained",
]
