"""Curves that map a run's predictions to probabilities: fitted on the validation part, judged on later rows.

Reading order: curves.py (what a curve is, and `calibrate`, which applies it), calibration_file.py (calibration.json),
rows_of_run.py, labeled_rows.py, fit.py, judge.py,
fit_tasks.py, calibrate_run.py (the command). The first two need numpy alone, neither torch nor
what fits, for a program that scores.
Import from the modules. May import `training`, `checkpoints`, `data`, `config` and `runtime`.
"""
