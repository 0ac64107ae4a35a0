"""What a run can be told: frozen dataclasses, recipes, and their way from a command line or YAML and back.

Reading order: run.py, and the sections that it joins: data.py, synthetic.py, model.py, optimizers.py, sharding.py and
loop.py; then recipes.py, command_line.py, files.py, serialization.py, limits.py.
Import the names below. May import `runtime` only.
"""

from stem_torchrec.config.command_line import (
    option_names,
    parse_arguments,
    parse_known_arguments,
    run_main,
)
from stem_torchrec.config.data import DataConfig
from stem_torchrec.config.files import config_from_command_line, dump_config, load_config, what_is_trained
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.model import ModelConfig
from stem_torchrec.config.optimizers import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from stem_torchrec.config.recipes import RECIPES
from stem_torchrec.config.run import TrainConfig
from stem_torchrec.config.sharding import ShardingConfig
from stem_torchrec.config.synthetic import SyntheticConfig

__all__ = [
    "RECIPES",
    "CheckpointConfig",
    "DataConfig",
    "DenseOptimizerConfig",
    "LoopConfig",
    "ModelConfig",
    "ScheduleConfig",
    "ShardingConfig",
    "SparseOptimizerConfig",
    "SyntheticConfig",
    "TrainConfig",
    "config_from_command_line",
    "dump_config",
    "load_config",
    "option_names",
    "parse_arguments",
    "parse_known_arguments",
    "run_main",
    "what_is_trained",
]
