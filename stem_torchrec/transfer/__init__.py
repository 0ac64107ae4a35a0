"""Weights from another model or layout: warm start, tasks added to a trained STEM, conversion between layouts.

Reading order: weight_source.py opens weights to read from; warm_start.py fills tables from them, add_tasks.py fills a
STEM with more tasks; convert_layout.py writes a run in the other layout.
Import from the modules. May import `training` and everything below it.
"""
