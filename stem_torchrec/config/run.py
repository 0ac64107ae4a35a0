"""What a run can be told: frozen dataclasses; the text under a field is its `--help`."""

from dataclasses import dataclass, field
from typing import Literal

from stem_torchrec.config.literals import (
    Arch,
    Communication,
    GateInput,
    Groups,
    InputDist,
    Kernel,
    Layout,
    OnBadRow,
    Precision,
    ShardingType,
    SparseOptimizerName,
)
from stem_torchrec.config.synthetic import SyntheticConfig


@dataclass(frozen=True)
class DataConfig:
    """The log, and how rows become batches."""

    path: str | None = None
    """Folder with schema.json, train/ and valid/, local or any path that iopath opens. None makes the synthetic
    log below data/ once and uses that; a recipe for a log of your own needs the path."""
    batch_size: int = 4096
    """Rows per rank and step; the global batch is this times the world size."""
    eval_batch_size: int = 8192
    """Rows per rank and step in evaluation."""
    shuffle_rows: int = 262_144
    """Rows that are shuffled together: row groups in random order, then the rows of each run of row groups of at
    least this size. 0 keeps the order of the log."""
    num_workers: int = 0
    """Reader processes per rank. With 0 a thread decodes the next rows while a step runs."""
    on_bad_row: OnBadRow = "fail"
    """What becomes of a row that breaks the schema, and of the rows of a damaged part of a file: fail names the first
    and ends the run; skip counts them by reason and reads on."""
    max_bad_share: float = 0.001
    """Share of a rank's rows of an epoch that may be skipped before the run ends."""
    features: tuple[str, ...] = ()
    """Sparse features that get tables, by name; none means every one in schema.json."""
    labels: tuple[str, ...] = ()
    """Labels that become tasks, in this order; none means every one in schema.json."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The synthetic log that stands in while no path is given; without meaning beside a path."""

    @property
    def skipped_share(self) -> float | None:
        """The share of bad rows to skip; None where the first one ends the run."""
        return self.max_bad_share if self.on_bad_row == "skip" else None


@dataclass(frozen=True)
class ModelConfig:
    """STEM-Net (arXiv 2308.13537) or a baseline, and its tables."""

    arch: Arch = "stem"
    """The model between tables and towers. stem, me_mmoe and me_ple have tables of every task and shared ones,
    single_task those of every task, the others shared ones; aitm and esmm take the labels as steps in their order."""
    embedding_dim: int = 16
    """Width D of every group's embedding of a feature."""
    layout: Layout = "split"
    """split keeps a table of width D for every group and feature; packed one per feature, which holds the groups'
    side by side and is looked up once. packed needs an optimizer that treats every element on its own."""
    num_layers: int = 1
    """Layers of experts and gates (stem, ple, me_ple)."""
    num_shared_experts: int = 8
    """Shared experts, per layer. omoe and mmoe have these and those of all tasks, so as many as stem."""
    num_task_experts: int = 1
    """Experts of each task, per layer."""
    expert_hidden: tuple[int, ...] = (512, 512, 512)
    """Layer widths of an expert, or of a bottom; the last is its output."""
    gate_hidden: tuple[int, ...] = (128, 64)
    """Hidden layer widths of a gate."""
    tower_hidden: tuple[int, ...] = (128, 64)
    """Hidden layer widths of a tower."""
    dropout: float = 0.0
    """Share of units dropped after each hidden layer of experts, gates and towers."""
    embedding_dropout: float = 0.0
    """Share of pooled embedding values dropped before the first layer."""
    embedding_l2: float = 0.0
    """L2 regularisation of embeddings: the weight of half their squared norm in the loss, mean over a batch. Only rows
    that train a table decay it, so tasks stay isolated; on any device, unlike --sparse.weight-decay."""
    reads: Groups = "all"
    """Experts that a task's gate reads (stem): those of all groups, or only its own and the shared ones."""
    trains: Groups = "own_shared"
    """Of the experts it reads, those that a task's loss trains (stem): own and shared (AFTB), or all."""
    gate_input: GateInput = "sum"
    """What a task's gate decides by (stem): its own embeddings, the shared ones, or the sum of both."""
    embedding_std: float = 1e-4
    """Standard deviation of the normal distribution that tables start from."""
    task_weights: tuple[float, ...] = ()
    """Weight of each task's loss, in the order of the labels; none means 1 for each."""


@dataclass(frozen=True)
class SparseOptimizerConfig:
    """The optimizer of the tables, fused into the backward pass."""

    name: SparseOptimizerName = "rowwise_adagrad"
    """sgd, adagrad and rowwise_adagrad run everywhere; lamb and partial_rowwise_adam on CUDA; adam on CUDA,
    and on CPU with --sharding.kernel dense."""
    learning_rate: float = 0.02
    """Learning rate of the tables."""
    group_learning_rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by group (a task, or shared) where it differs: `shared 0.02 like 0.005`."""
    weight_decay: float = 0.0
    """Decay of the rows that were looked up (rowwise_adagrad, adam, lamb, partial_rowwise_adam, on CUDA)."""
    eps: float = 1e-8
    """Added to the root of the accumulated squares."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments (adam, lamb, partial_rowwise_adam)."""
    update_unlabeled_rows: bool = False
    """Moments and decay also move a table row whose label for the task is missing, which breaks the promise
    that a task trains only its own and the shared tables. Where labels are missing, such an optimizer is
    refused until this asks for it."""


@dataclass(frozen=True)
class DenseOptimizerConfig:
    """The optimizer of experts, gates and towers."""

    name: Literal["adam", "adamw"] = "adam"
    """Adam, or AdamW with decoupled weight decay."""
    learning_rate: float = 1e-3
    """Learning rate after warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    weight_decay: float = 0.0
    """L2 (adam) or decoupled (adamw) decay."""


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rates of tables and dense part change over the steps."""

    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes on after warm-up: constant, or down to 0 at the last step."""


@dataclass(frozen=True)
class ShardingConfig:
    """Where the tables live."""

    rules: tuple[str, ...] = ()
    """How single tables are sharded, as PATTERN=TYPE[:kernel=KERNEL][:rank=R,R...][:cache=SHARE]. The pattern names
    tables as group/feature with * and ?, the first rule that fits a table holds, and the planner fills the rest:
    `shared/*=row_wise like/user_id=table_wise:rank=1 *=auto`."""
    plan: str | None = None
    """A plan.json, as a run or a benchmark writes it, to shard by exactly that."""
    type: ShardingType = "auto"
    """Sharding type of the tables without a rule; auto lets TorchRec's planner choose for each."""
    kernel: Kernel = "auto"
    """Compute kernel of the tables without a rule. dense keeps the optimizer out of the backward pass (adam on CPU
    needs that); fused_uvm and fused_uvm_caching keep tables in host memory on CUDA."""
    input_dist: InputDist = "stock"
    """once sends each feature's ids once to a rank and hands them to all its tables there; stock, as TorchRec does
    it, once for every table. The results are the same bits."""
    communication: Communication = "fp32"
    """Precision in which embeddings and their gradients travel between the ranks."""
    hbm_gb: float | None = None
    """GPU memory per rank that the planner may fill, in GiB; by default what the GPU has."""


@dataclass(frozen=True)
class LoopConfig:
    """The training loop."""

    epochs: int = 1
    """Passes over the training rows."""
    max_steps: int | None = None
    """Stops after this many steps, before the epochs are over."""
    eval_every: int | None = None
    """Steps between two evaluations; by default once per epoch."""
    metric: str = "auc"
    """What early stopping watches on the validation split: the mean over the tasks of auc, gauc, logloss or ne,
    or one task's (`auc/like`)."""
    patience: int | None = None
    """Ends the run after this many evaluations without a better metric; by default never. The best
    weights are kept in any case."""
    clip_norm: float | None = None
    """Largest norm of the dense gradient; a larger one is scaled down."""
    precision: Precision = "fp32"
    """Of the matrix products of experts, gates and towers; weights stay fp32. bf16 runs under autocast, and is faster
    on GPUs and on CPUs with AMX; tf32 is for GPUs."""
    skip_nonfinite: bool = False
    """Skips and counts batches whose loss is not finite, without touching any table. Otherwise such a loss ends the
    run, with the batch kept in RUN/nonfinite. Skipping makes the host wait for the loss of each step."""
    log_every: int = 20
    """Steps between two lines of the log."""
    profile: bool = False
    """Records five early steps on every rank and writes RUN/profile: summary.txt, which says where the time of a
    step goes, and a trace for each rank. The speed logged meanwhile counts the recording."""
    timeout: float = 600.0
    """Seconds a rank waits for the others before the run fails."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a run keeps to go on from after an interruption."""

    minutes: float | None = 10.0
    """Minutes between two checkpoints; None for none by time."""
    steps: int | None = None
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints to keep, the newest; the best weights are kept in any case."""
    folder: str | None = None
    """Folder for checkpoints, any path that iopath opens; by default RUN/checkpoints."""
    max_failures: int = 3
    """Checkpoints in a row that may fail, for a full disk or a store that does not answer, before the run ends."""


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
