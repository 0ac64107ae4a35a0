"""How much memory a run takes at least, and whether that can fit: told before anything is built."""

import torch

from stem_torchrec.config import TrainConfig
from stem_torchrec.data.columns import Columns
from stem_torchrec.models.build import build_model
from stem_torchrec.runtime.errors import NoMemoryError
from stem_torchrec.runtime.memory import host_memory
from stem_torchrec.runtime.process import Process
from stem_torchrec.tables import table_configs
from stem_torchrec.training.sparse_optimizers import states_of_tables

_GIB = 2**30
_BYTES = 4
_DENSE_COPIES = 4
"""Numbers for each weight of the dense part: itself, its gradient and Adam's two moments."""


def check_memory(config: TrainConfig, columns: Columns, process: Process, *, rows: int) -> None:
    """Raises NoMemoryError where dense part, tables and the pooled embeddings of a step take more memory than there is.

    What else a step needs, above all the activations of experts, comes on top; whether the tables fit beside it is for
    the planner to find.

    Args:
        config: the run.
        columns: of the log.
        process: this rank.
        rows: of the training split.
    """
    with torch.device("meta"):
        model = build_model(config.model, columns)
    tables = [(table.num_embeddings, table.embedding_dim) for table in table_configs(model)]
    in_tables = sum(rows * dim for rows, dim in tables)
    in_dense = sum(parameter.numel() for parameter in model.parameters()) - in_tables
    rows_per_step = min(config.data.batch_size, rows // process.world_size)
    ranks, on_gpu = process.local_world_size, process.device.type == "cuda"
    pooled = rows_per_step * sum(dim for _, dim in tables)
    needs = {
        f"{ranks} x the dense part with gradients and moments": ranks * _DENSE_COPIES * in_dense,
        # Each embedding is there in the forward pass, and its gradient in the backward pass.
        f"{ranks} x the embeddings of {rows_per_step:,} rows": ranks * 2 * pooled,
        f"{len(tables)} tables with the state of {config.sparse.name}": (
            (in_tables + states_of_tables(tables, config.sparse.name)) * ranks // process.world_size
        ),
    }
    gib = {name: numbers * _BYTES / _GIB for name, numbers in needs.items()}
    memory = host_memory() / _GIB
    if on_gpu:
        # Tables may lie in both, the rest only on the GPUs; this refuses only what fits neither way.
        memory += ranks * torch.cuda.get_device_properties(process.device).total_memory / _GIB
    if sum(gib.values()) > memory:
        parts = ", ".join(f"{value:,.1f} GiB for {name}" for name, value in gib.items())
        raise NoMemoryError(
            f"this run needs at least {sum(gib.values()):,.1f} GiB of memory on a host, which has {memory:,.1f} GiB: "
            f"{parts}; give smaller sizes in --model, a smaller --data.batch-size, or more hosts."
        )
