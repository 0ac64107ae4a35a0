"""A new run that starts from another one: whose state it opens, and which row of a table each row continues.

Reading order: source.py opens a run, a checkpoint or weights; id_maps.py tells which old row each row of a feature's
tables continues.
Import from the modules. May import `checkpoints`, `models`, `tables`, `data`, `config` and `runtime`.
"""
