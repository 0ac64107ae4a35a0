"""Options that several models have; a model's own options class, in its file, extends some of these or ModelConfig."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Interval

from stem_torchrec.config import ModelConfig, Width
from stem_torchrec.models.group_experts import ExpertKind
from stem_torchrec.tables import TableChoice

Experts = Annotated[int, Interval(ge=1, le=1024)]
CovarianceWeight = Annotated[float, Interval(ge=0, le=1e6)]


@dataclass(frozen=True)
class OwnTableOptions(ModelConfig):
    """Options of a model with tables for each task beside the shared ones."""

    own_tables: tuple[str, ...] = ()
    """Features that have a table for each task beside the shared one; of the others there is only the shared one, which
    all tasks read and train. None named means all."""
    # The planner's benchmark keys a cache by a model's options, which a dict cannot be part of.
    table_groups: dict[str, str] = field(default_factory=dict, hash=False)
    """The group of tables of a task, where it is not its own: `buy conversion pay conversion` gives two tasks one group
    of tables, `like shared` leaves a task the shared ones alone."""
    table_widths: dict[str, Annotated[int, Interval(ge=0, le=16_384)]] = field(default_factory=dict, hash=False)
    """Width of tables by group or by group/feature where it is not the feature's: `conversion 8 like/uid 4`; 0 by
    group/feature means no table. A narrower table is filled up with zeros."""

    def table_choice(self) -> TableChoice:
        """The tables that these options name."""
        return TableChoice(self.own_tables, self.table_groups, self.table_widths)


@dataclass(frozen=True)
class BottomOptions(ModelConfig):
    """Options of a model with an MLP, or one for each task, between tables and towers."""

    expert_hidden: tuple[Width, ...] = (512, 512, 512)
    """Layer widths of a bottom; the last is its output."""


@dataclass(frozen=True)
class ExpertOptions(ModelConfig):
    """Options of a model with experts behind gates."""

    num_shared_experts: Experts = 8
    """Shared experts, per layer."""
    num_task_experts: Experts = 1
    """Experts of each task, per layer."""
    expert_hidden: tuple[Width, ...] = (512, 512, 512)
    """Layer widths of an expert; the last is its output."""
    gate_hidden: tuple[Width, ...] = (128, 64)
    """Hidden layer widths of a gate."""


@dataclass(frozen=True)
class ExpertKindOptions(ExpertOptions):
    """Options of a model whose experts may be of several kinds."""

    expert: ExpertKind = "mlp"
    """mlp: linear layers and ReLU. norm: LayerNorm and Swish in place of ReLU (HoME). cross: low-rank cross layers for
    each group, in front of its experts (DCN V2, DTN). cross_norm: both."""
    cross_layers: Annotated[int, Interval(ge=1, le=128)] = 2
    """Cross layers of a group, with --model.expert cross and cross_norm."""
    feature_gate: bool = False
    """Scale each group's input by a gate of its own, in front of its experts (HoME)."""
    prior: tuple[str, ...] = ()
    """Sparse features, as user and author, whose embeddings in a group's input decide how that input is scaled, in
    front of the experts of the first layer (PEPNet); none means no such gate."""
    rank: Width = 64
    """Rank of the matrices of cross layers and of the feature gate, and hidden width of the prior gate. Below half of
    the width of an input a cross layer has fewer weights than with a full matrix."""


@dataclass(frozen=True)
class LayeredOptions(ExpertKindOptions):
    """Options of a model with layers of experts behind gates."""

    num_layers: Annotated[int, Interval(ge=1, le=128)] = 1
    """Layers of experts and gates."""
    self_gate: bool = False
    """Let each stream read its own experts once more, by a gate for them alone (HoME)."""
