"""Where the tables of a run live."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from stem_torchrec.runtime.path_options import InputFile

PlacedType = Literal[
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_column_wise",
    "table_row_wise",
    "grid_shard",
]
"""What a plan says of a table."""
ShardingType = Literal["auto", PlacedType]
Kernel = Literal["auto", "fused", "dense", "fused_uvm", "fused_uvm_caching"]
InputDist = Literal["stock", "once"]
Communication = Literal["fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class ShardingConfig:
    """Where the tables live."""

    rules: tuple[str, ...] = ()
    """How single tables are sharded, as PATTERN=TYPE[:kernel=KERNEL][:rank=R,R...][:cache=SHARE]. The pattern names
    tables as group/feature with * and ?; the first rule that fits a table holds, and the planner chooses the rest:
    `shared/*=row_wise like/user_id=table_wise:rank=1 *=auto`."""
    plan: InputFile | None = None
    """A plan.json, as a run or a benchmark writes it, to shard by exactly that."""
    type: ShardingType = "auto"
    """Sharding type of the tables without a rule; auto lets TorchRec's planner choose for each."""
    kernel: Kernel = "auto"
    """Compute kernel of the tables without a rule. dense keeps the optimizer out of the backward pass (adam on CPU
    needs that); fused_uvm and fused_uvm_caching keep tables in host memory on CUDA."""
    input_dist: InputDist = "stock"
    """once sends each feature's ids once to a rank, which passes them to all its tables; stock sends them once for
    every table, as TorchRec does. The results are the same bits."""
    communication: Communication = "fp32"
    """Precision in which embeddings and their gradients travel between the ranks."""
    hbm_gb: Annotated[float, Interval(ge=1e-3, le=1e6)] | None = None
    """GPU memory per rank that the planner may fill, in GiB; by default what the GPU has."""
