"""The names that an option takes one of."""

from typing import Literal

Arch = Literal["stem", "single_task", "shared_bottom", "omoe", "mmoe", "ple", "aitm", "esmm", "me_mmoe", "me_ple"]
Groups = Literal["all", "own_shared"]
GateInput = Literal["sum", "task", "shared"]
SparseOptimizerName = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "lamb", "partial_rowwise_adam"]
ShardingType = Literal[
    "auto",
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_column_wise",
    "table_row_wise",
    "grid_shard",
]
Kernel = Literal["auto", "fused", "dense", "fused_uvm", "fused_uvm_caching"]
Layout = Literal["split", "packed"]
Precision = Literal["fp32", "tf32", "bf16"]
OnBadRow = Literal["fail", "skip"]
InputDist = Literal["stock", "once"]
Communication = Literal["fp32", "fp16", "bf16"]
