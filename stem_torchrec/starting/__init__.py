"""A new run that starts from another one: whose state it opens, which row a row continues, what is carried.

Reading order: source.py opens a run, a checkpoint or weights; record.py has start.json; id_spaces.py tells what ids
mean; id_maps.py, which old row each row of a feature's tables continues.
Import from the modules. May import `checkpoints`, `models`, `tables`, `expressions`, `data`, `config` and `runtime`.
"""
