"""How fast a run scores in one process, which is benchmarks/serving.py.

In reading order: run.py reads the command line, exports the bundles and lets the sides take turns; turns.py starts each
side as a process of its own, which worker.py is; sides.py opens a side; rows.py has the rows that they score; report.py
writes the results. It may import stem_torchrec and common.
"""
