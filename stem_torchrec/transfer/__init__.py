"""Weights from another model or layout: warm start, tasks added to a trained STEM, conversion between layouts.

Reading order: weight_source.py, warm_start.py, add_tasks.py, convert_layout.py.
Import from the modules. May import `training` and everything below it.
"""
