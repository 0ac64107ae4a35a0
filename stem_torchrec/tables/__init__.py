"""The tables: what they are called, the collection that holds them, and what this rank has of them once sharded.

Reading order: names.py (`group/feature`, layouts), collection.py (building and looking up), sharded.py (walking them).
Import the names below. May import `data`, `config` and `runtime`.
"""

from stem_torchrec.tables.collection import SparseArch, cut_columns, embedding_bag_configs
from stem_torchrec.tables.names import SHARED, groups_of, split_columns, table_group, table_groups, table_name
from stem_torchrec.tables.sharded import LocalShard, local_shards, sharded_collections, table_configs

__all__ = [
    "SHARED",
    "LocalShard",
    "SparseArch",
    "cut_columns",
    "embedding_bag_configs",
    "groups_of",
    "local_shards",
    "sharded_collections",
    "split_columns",
    "table_configs",
    "table_group",
    "table_groups",
    "table_name",
]
