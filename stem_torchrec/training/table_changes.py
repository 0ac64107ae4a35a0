"""Which rows of which tables a step changes: by the optimizer of the tables, and by the tasks that train them."""

from torchrec.distributed import DistributedModelParallel
from torchrec.optim.optimizers import in_backward_optimizer_filter

from stem_torchrec.config import SparseOptimizerConfig
from stem_torchrec.deltas.shard_rows import size_of
from stem_torchrec.deltas.touched import TouchedRows
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
