"""Which rows of which tables a step changes: by the optimizer of the tables, and by the tasks that train them.

Also whether rows can be shipped in a precision.
"""

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.config import DeltaConfig, SparseOptimizerConfig
from stem_torchrec.deltas.shard_rows import ModelTensors, size_of
from stem_torchrec.deltas.touched import TouchedRows
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.tables import TableTensor, split_columns, table_of
from stem_torchrec.training.dense_optimizer import tasks_that_train
from stem_torchrec.training.optimizers import SPARSE_OPTIMIZERS


def moves_unlabeled(sparse: SparseOptimizerConfig) -> bool:
    """Whether the optimizer moves a row that is looked up without a label."""
    return SPARSE_OPTIMIZERS[sparse.name].has_moments or sparse.weight_decay > 0


def tables_that_move(model: DistributedModelParallel, sparse: SparseOptimizerConfig) -> set[str]:
    """Tables in which every step moves all rows: those outside of the fused optimizer, if it has moments."""
    if not SPARSE_OPTIMIZERS[sparse.name].has_moments:
        return set()
    names = (table_of(name) for name, _ in in_backward_optimizer_filter(model.named_parameters()))
    return {name for name in names if name is not None}


def bits_by_table(model: DistributedModelParallel, touched: TouchedRows, tasks: int) -> dict[str, int]:
    """The bits of the tasks that train a table, by its name in the split layout."""
    trained_by, bits = tasks_that_train(model), {}
    for name, value in model.state_dict().items():
        tensor = TableTensor.parse(name)
        if tensor is None:
            continue
        for table in split_columns(tensor.table, size_of(value)[1]):
            part = TableTensor(tensor.prefix, table).name
            bits[table] = touched.bits_of(trained_by.get(part, range(tasks)))
    return bits


def check_precision(model: DistributedModelParallel, config: DeltaConfig) -> None:
    """Raises UserError for int8 rows of a table that is cut by columns: a row has one scale for all of them."""
    if config.precision == "int8" and (cut := ModelTensors(model.state_dict(), bits={}).cut_by_columns()):
        raise UserError(
            f"--delta.precision int8 has one scale for a row, but {cut[0]} is cut by columns; choose fp32 or fp16, or "
            "another --sharding.type for it."
        )
