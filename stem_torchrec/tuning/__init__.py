"""Searches for settings with Optuna: the space, and the study whose trials the ranks train.

Reading order: search_space.py, study.py. Import from the modules. May import `training` and everything below it.
"""
