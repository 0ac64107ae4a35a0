"""The offline planner of benchmarks/plan.py: plans sharding strategies for a cluster that need not exist.

In reading order: config.py describes the cluster and arithmetic.py counts bytes by hand; search.py looks for plans in
bounded time and strategies.py plans each strategy; calibrate.py fits bandwidths to a sweep; report.py and plots.py
write it all down; run.py does everything in order. It may import stem_torchrec, common and, for the results of a
sweep, sweep.
"""
