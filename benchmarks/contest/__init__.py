"""The contests of benchmarks/throughput.py: contestants built side by side take turns in training.

In reading order: problem.py is what they train; sides.py builds those that train, with models.py for the models of ours
and plain.py for the plain ones, and limits.py measures what the machine allows; turns.py holds a contest between
processes, each of which is worker.py; cases.py lists who competes, and seats.py who fits onto a GPU at once; ratios.py,
shares.py and report.py write down the results; run.py is the command. It may import stem_torchrec and common.
"""
