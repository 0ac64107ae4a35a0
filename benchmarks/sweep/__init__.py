"""The sweep of benchmarks/sharding.py: measures sharding cases one by one in fresh processes, and recommends one.

In reading order: cases.py names the cases and config.py reads the command line; ranks.py runs a case in a child of
every rank, worker.py is that child, and measure.py measures in it on the batches of batches.py, with times.py;
results.py keeps the measurements, rows.py summarizes and compares them, gains.py sets each case against TorchRec's own
way; by_table.py, report.py and plots.py write it all down; run.py is the loop over the cases. It may import
stem_torchrec and common.
"""
