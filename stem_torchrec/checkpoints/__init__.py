"""Checkpoints of a run in training, and weights: all that a run needs to resume, on these ranks or others.

Reading order: folder.py, storage.py, saver.py, state.py, weights.py, load_planner.py, rowwise.py, resume.py,
compatibility.py, watch.py, agreement.py. Import from the modules. May import `tables`, `data`, `config` and `runtime`.
"""
