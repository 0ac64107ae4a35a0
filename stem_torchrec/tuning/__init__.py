"""A search for the setting of a model that validates best, with Optuna; each rank trains trials of its own.

Reading order: search_space.py reads what a trial chooses from, options.py the command line, untrained.py finds spaces
that no run takes, trial.py trains a setting, study.py makes the trials and writes the best setting.
Import from the modules. May import `training` and everything below it.
"""
