"""Losses of tasks: one small function each, of rows or of what a step has of them on all ranks.

Reading order: table.py, which lists all losses; task_losses.py, pointwise.py, pairs.py, jrc.py, step_rows.py.
docs/losses.md describes them. Import from the modules. May import `metrics`, `data`, `config` and `runtime`.
"""
