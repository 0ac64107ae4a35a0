"""Names of the ranges that torch, TorchRec and FBGEMM leave in a profile, checked with both stacks.

Each is a pattern for the beginning of a range's name. A range that a new version renames counts as part of the range
around it.
"""

import re

STEP = re.compile(r"ProfilerStep")
"""Around each recorded step; by the schedule of torch.profiler."""

INPUT = re.compile(r"## (copy_batch_to_gpu|next_batch|wait_for_batch) ")
"""By the train pipeline: reading the next batch, and its copy to the device."""

# The permutation is also how --sharding.input-dist once copies ids into the slots of the lookup.
INPUT_DIST = re.compile(
    r"## (start_sparse_data_dist|wait_sparse_data_dist|runtime_forward_assemble_KJT) |fbgemm::permute_.D_sparse_data"
)
"""By the train pipeline and FBGEMM: ids to the ranks of their tables."""

LOOKUP = re.compile(r"\[lookup\]")
"""By the sharded collection: rows of the tables, pooled."""

OUTPUT_DIST = re.compile(
    r"\[output_dist|## \w*EmbeddingBagCollectionAwaitable "
    r"|(Variable_Batch_)?(All2All|ReduceScatter|AllGather)\w+Backward"
)
"""By the sharded collection and TorchRec's collectives: pooled embeddings back, and their gradients."""

FORWARD = re.compile(r"## forward ")
"""By the train pipeline."""

BACKWARD = re.compile(r"## backward ")
"""By the train pipeline."""

TABLE_BACKWARD = re.compile(r"torch::autograd::CppNode<.*Lookup\w*Function")
"""By FBGEMM's fused tables: their gradients and the optimizer's update."""

ALL_REDUCE = re.compile(r"c10d::allreduce_|torch::distributed::reducer::")
"""By DistributedDataParallel."""

OPTIMIZER = re.compile(r"## (optimizer|zero_grad) ")
"""By the train pipeline."""

AUTOGRAD_FUNCTION = "autograd::engine::evaluate_function: "
"""Begins the name of each function that a backward pass calls; behind it comes the function's own name."""
