"""A new run that starts from another one: whose state it opens, which row a row continues, what is carried.

Reading order: source.py opens a run, a checkpoint or weights; record.py has start.json; id_spaces.py tells what ids
mean, scales.py how numbers are scaled; id_maps.py, which old row each row of a feature's tables continues;
axis_labels.py names the positions of dense axes, and model_weights.py all weights of a model; match_tables.py and
match_modules.py tell which weights continue which, carried.py the table that says so, and carry_plan.py puts them
together; carry_planner.py reads parts of saved tensors into others, local_copies.py lists those of a rank; mean_rows.py
fills new rows; carry.py does all of it.
Import from the modules. May import `checkpoints`, `models`, `tables`, `expressions`, `data`, `config` and `runtime`.
"""
