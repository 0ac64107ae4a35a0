"""How fast the reader feeds a model, which is benchmarks/reader.py.

In reading order: run.py reads the command line, runs the cases and writes the report; rates.py counts the rows per
second of a reader; waiting.py times the steps of the reference model and the waiting in them; logs.py writes the logs
that are read; slow_store.py serves them as a store does that takes its time. It may import stem_torchrec and common.
"""
