"""A list of days, each tested before it is trained on: what going on from yesterday gains and costs.

Reading order: walk.py, options.py, policies.py (what a day is trained on and from), day_logs.py (its logs), day_runs.py
(its run and its test), scores.py (AUC of each day and of all), collisions.py (of hashed ids), report.py. It may import
stem_torchrec and common.
"""
