"""The offline planner of benchmarks/plan.py: plans sharding strategies for a cluster that need not exist.

In reading order: config.py describes the cluster and arithmetic.py counts bytes by hand; search.py looks for plans in
bounded time, strategies.py plans each strategy and plans.py keeps the plans; step.py estimates a whole step and
advice.py chooses by it; calibrate.py fits bandwidths to a sweep; by_hand.py, columns.py, report.py, report_table.py
and plots.py write it all down; run.py does everything in order. It may import stem_torchrec, common and, for the
results of a sweep, sweep.
"""
