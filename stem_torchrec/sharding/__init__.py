"""Where the tables live: rules, plans, and sharding by plans, for any module with EmbeddingBagCollections.

Reading order: placement.py, planner.py, partitioner.py, plan.py, plan_file.py, topology.py, shard.py, sharder.py,
once.py. Import from the modules. May import `tables`, `data`, `config` and `runtime`.
"""
