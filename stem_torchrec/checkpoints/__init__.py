"""Checkpoints of a training run, and weights alone: all that a run needs to resume, on the same ranks or others.

Reading order: storage.py, folder.py, weights.py, first_rows.py, checksum.py, load_planner.py, dropout_names.py,
saver.py, state.py, rank_tensors.py, rowwise.py, compatibility.py, resume.py, watch.py, agreement.py.
Import from the modules. May import `tables`, `balance`, `data`, `config` and `runtime`.
"""
