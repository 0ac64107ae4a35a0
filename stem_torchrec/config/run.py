"""The configuration of one run; the text under a field is its `--help`."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.config.balance import BalanceConfig
from stem_torchrec.config.data import DataConfig
from stem_torchrec.config.delta import DeltaConfig
from stem_torchrec.config.loop import CheckpointConfig, LoopConfig
from stem_torchrec.config.loss import LossConfig
from stem_torchrec.config.model import ModelConfig
from stem_torchrec.config.optimizers import DenseOptimizerConfig, ScheduleConfig, SparseOptimizerConfig
from stem_torchrec.config.sharding import ShardingConfig
from stem_torchrec.config.start import StartConfig, StartFrom
from stem_torchrec.runtime.path_options import OutputFolder, PathOption


@dataclass(frozen=True)
class TrainConfig:
    """One run. The defaults come from `--recipe NAME`, `--config RUN/config.yaml` or `--start-from RUN`."""

    recipe: str = ""
    """The recipe that the defaults come from: log with --data.path, and synthetic without it, if none is given."""
    data: DataConfig = field(default_factory=DataConfig)
    """The log, and how rows become batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model and its tables."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The losses of the tasks."""
    sparse: SparseOptimizerConfig = field(default_factory=SparseOptimizerConfig)
    """The optimizer of the tables."""
    dense: DenseOptimizerConfig = field(default_factory=DenseOptimizerConfig)
    """The optimizer of experts, gates and towers."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """How the learning rates change over the steps."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How the tasks are balanced: weights of their losses, and gradients at the shared tables."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    """Where the tables live."""
    train: LoopConfig = field(default_factory=LoopConfig)
    """The training loop."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """What a run keeps so that it can resume."""
    delta: DeltaConfig = field(default_factory=DeltaConfig)
    """What is shipped while the run trains."""
    start_from: StartFrom | None = None
    """Starts a new run from the state of another one, with its options unless --recipe or --config names others: RUN is
    its last checkpoint, RUN:best its best weights with fresh optimizer states; a checkpoint, a folder of checkpoints
    and a folder of weights serve as well."""
    start: StartConfig = field(default_factory=StartConfig)
    """What --start-from takes over."""
    resume: Annotated[str, PathOption("folder", words=("auto", "never"))] = "auto"
    """auto resumes from the newest checkpoint of the run folder, if it has one; never refuses a folder that holds a
    run; a path, of a checkpoint or of a folder of checkpoints, is where a run folder without a checkpoint starts."""
    output_dir: OutputFolder | None = None
    """The run folder: configuration, plan, metrics, TensorBoard files, best weights; by default a new one
    under runs/, named by the time."""
    dry_run: bool = False
    """Shows the plan and, with --start-from, what is carried; then ends without a run folder and without training."""
    take_over: bool = False
    """Takes the run folder, and --checkpoint.folder, from another process that owns it, which then ends. Without it a
    run in a folder that is in use is refused. A killed run needs it only on another machine, for five minutes."""
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = 0
    """Seed of initial weights, order of rows and dropout."""
