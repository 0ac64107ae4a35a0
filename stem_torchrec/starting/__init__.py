"""A new run that starts from another one: whose state it opens, and which row of a table each row continues.

Reading order: source.py opens a run, a checkpoint or weights; id_maps.py tells which old row each row of a feature's
tables continues; axis_labels.py names the positions of dense axes, and model_weights.py all weights of a
model; match_tables.py and match_modules.py tell which weights continue which, carried.py the table that says so, and
carry_plan.py puts them together; carry_planner.py reads parts of saved tensors into others, local_copies.py lists those
of a rank; mean_rows.py fills new rows; carry.py does all of it.
Import from the modules. May import `checkpoints`, `models`, `tables`, `data`, `config` and `runtime`.
"""
