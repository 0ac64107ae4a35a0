"""A training run: optimizers, the loop, evaluation, the run folder, its checkpoints and best weights.

Reading order: run.py (the order of it all), assembly.py, optimizers.py, loop.py, evaluation.py, run_evaluation.py,
run_folder.py, run_checkpoints.py, best_weights.py, early_stopping.py, meter.py, nonfinite.py.
Import from the modules. May import everything but `transfer`, `tuning` and `comparison`.
"""
