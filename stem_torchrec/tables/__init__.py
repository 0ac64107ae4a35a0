"""The tables: what a table is, the collection that holds them, their names, and this rank's parts of them.

Reading order: names.py (`group/feature`, layouts), choice.py (which groups have which tables), pooling.py (sums and
means), checks.py (tables for models, batches for tables), collection.py (building and looking up), inputs.py (what a
group reads), tensors.py (names in state dicts), sharded.py (walking the tables of a model). No other package knows how
TorchRec names the tensors of tables, or looks for its collections. Import the names below. May import `data`, `config`
and `runtime`.
"""

from stem_torchrec.tables.choice import ALL_TABLES, TableChoice
from stem_torchrec.tables.collection import SparseArch, build_collection, cut_columns, embedding_bag_configs
from stem_torchrec.tables.inputs import GroupInputs
from stem_torchrec.tables.names import (
    SHARED,
    groups_of,
    split_columns,
    table_feature,
    table_group,
    table_groups,
    table_name,
)
from stem_torchrec.tables.pooling import ROW_TYPES, check_means, check_plan, mean_tables, wrong_mean_types
from stem_torchrec.tables.sharded import (
    LocalShard,
    clear_states,
    local_pieces,
    local_shards,
    reads_weights,
    set_steps,
    sharded_collections,
    size_of,
    table_configs,
    table_weights,
    with_one_row,
)
from stem_torchrec.tables.tensors import TableTensor, table_of, tables_among

__all__ = [
    "ALL_TABLES",
    "ROW_TYPES",
    "SHARED",
    "GroupInputs",
    "LocalShard",
    "SparseArch",
    "TableChoice",
    "TableTensor",
    "build_collection",
    "check_means",
    "check_plan",
    "clear_states",
    "cut_columns",
    "embedding_bag_configs",
    "groups_of",
    "local_pieces",
    "local_shards",
    "mean_tables",
    "reads_weights",
    "set_steps",
    "sharded_collections",
    "size_of",
    "split_columns",
    "table_configs",
    "table_feature",
    "table_group",
    "table_groups",
    "table_name",
    "table_of",
    "table_weights",
    "tables_among",
    "with_one_row",
    "wrong_mean_types",
]
