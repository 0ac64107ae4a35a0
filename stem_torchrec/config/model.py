"""The model of a run and its tables."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

Arch = Literal["stem", "single_task", "shared_bottom", "omoe", "mmoe", "ple", "aitm", "esmm", "me_mmoe", "me_ple"]
Groups = Literal["all", "own_shared"]
GateInput = Literal["sum", "task", "shared"]
Layout = Literal["split", "packed"]

_Width = Annotated[int, Interval(ge=1, le=65_536)]
_Experts = Annotated[int, Interval(ge=1, le=1024)]
_Share = Annotated[float, Interval(ge=0, le=0.999)]


@dataclass(frozen=True)
class ModelConfig:
    """STEM-Net (arXiv 2308.13537) or a baseline, and its tables."""

    arch: Arch = "stem"
    """The model between tables and towers. stem, me_mmoe and me_ple have tables of every task and shared ones,
    single_task those of every task, the others shared ones; aitm and esmm take the labels as steps in their order."""
    embedding_dim: Annotated[int, Interval(ge=1, le=16_384)] = 16
    """Width D of every group's embedding of a feature."""
    layout: Layout = "split"
    """split keeps a table of width D for every group and feature; packed one per feature, which holds the groups'
    side by side and is looked up once. packed needs an optimizer that treats every element on its own."""
    num_layers: Annotated[int, Interval(ge=1, le=128)] = 1
    """Layers of experts and gates (stem, ple, me_ple)."""
    num_shared_experts: _Experts = 8
    """Shared experts, per layer. omoe and mmoe have these and those of all tasks, so as many as stem."""
    num_task_experts: _Experts = 1
    """Experts of each task, per layer."""
    expert_hidden: tuple[_Width, ...] = (512, 512, 512)
    """Layer widths of an expert, or of a bottom; the last is its output."""
    gate_hidden: tuple[_Width, ...] = (128, 64)
    """Hidden layer widths of a gate."""
    tower_hidden: tuple[_Width, ...] = (128, 64)
    """Hidden layer widths of a tower."""
    dropout: _Share = 0.0
    """Share of units dropped after each hidden layer of experts, gates and towers."""
    embedding_dropout: _Share = 0.0
    """Share of pooled embedding values dropped before the first layer."""
    embedding_l2: Annotated[float, Interval(ge=0, le=1e6)] = 0.0
    """L2 regularisation of embeddings: the weight of half their squared norm in the loss, mean over a batch. Only rows
    that train a table decay it, so tasks stay isolated; on any device, unlike --sparse.weight-decay."""
    reads: Groups = "all"
    """Experts that a task's gate reads (stem): those of all groups, or only its own and the shared ones."""
    trains: Groups = "own_shared"
    """Of the experts it reads, those that a task's loss trains (stem): own and shared (AFTB), or all."""
    gate_input: GateInput = "sum"
    """What a task's gate decides by (stem): its own embeddings, the shared ones, or the sum of both."""
    embedding_std: Annotated[float, Interval(ge=0, le=100)] = 1e-4
    """Standard deviation of the normal distribution that tables start from."""
    task_weights: tuple[Annotated[float, Interval(gt=0, le=1e6)], ...] = ()
    """Weight of each task's loss, in the order of the labels; none means 1 for each."""
