"""Models side by side: their runs, statistics with intervals, and the report.

Reading order: config.py, options.py, runs.py, choices.py, train_all.py; tested.py, intervals.py, comparable.py,
diagnostics.py; sections.py, report.py, write_report.py.
Import from the modules. May import `training` and everything below it.
"""
