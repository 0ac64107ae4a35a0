"""One run: all that it can be told; the text under a field is its `--help`."""

from dataclasses import dataclass, field

from stem_torchrec.config.data import DataConfig
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.model import ModelConfig
from stem_torchrec.config.optimizers import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from stem_torchrec.config.sharding import ShardingConfig


@dataclass(frozen=True)
class TrainConfig:
    """One run. `--recipe NAME` or `--config RUN/config.yaml` says where the defaults come from."""

    data: DataConfig = field(default_factory=DataConfig)
    """The log, and how rows become batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model and its tables."""
    sparse: SparseOptimizerConfig = field(default_factory=SparseOptimizerConfig)
    """The optimizer of the tables."""
    dense: DenseOptimizerConfig = field(default_factory=DenseOptimizerConfig)
    """The optimizer of experts, gates and towers."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rates change over the steps."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    """Where the tables live."""
    train: LoopConfig = field(default_factory=LoopConfig)
    """The training loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What a run keeps to go on from."""
    resume: str = "auto"
    """auto goes on from the newest checkpoint of the run folder, if it has one; never refuses a folder that holds a
    run; a path is that of a checkpoint, or of a folder of checkpoints, to start from where the folder has none yet."""
    output_dir: str | None = None
    """The run folder: configuration, plan, metrics, TensorBoard files, best weights; by default a new one
    under runs/, named by the time."""
    seed: int = 0
    """Seed of initial weights, order of rows and dropout."""
