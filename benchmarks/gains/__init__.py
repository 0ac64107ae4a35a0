"""Models side by side on several sources of logs: in how many tasks of all does a model gain over the base?

It is benchmarks/pays.py. Reading order: run.py, options.py, sources.py (a source and its comparison), done.py (what is
trained), of_two.py (two runs of the base as a model), draws.py (the AUC of a model over draws of users, kept in a
file), family.py (all differences, adjusted together), averages.py (two runs together), runs_done.py (the numbers of
each run), report.py. It may import stem_torchrec and common.
"""
