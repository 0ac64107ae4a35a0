"""A fuzzer of the commands: what a user may type, write into a file or leave in a folder, and the answers to it.

An example fails on a traceback, a hang, an exit status that docs/errors.md does not list, or an accepted input that
breaks an invariant. `make test` runs a fixed sample of each target, `make fuzz` as many examples as it is told to, and
writes a summary.

Run to their end: train, evaluate, calibrate, convert, export, apply_delta, score, tune, compare, inspect_run, report
and prepare of stem_torchrec/, both scripts of datasets/, and plan of benchmarks/. Of benchmarks/sharding.py an example
ends before the first case, by the results of another sweep in its folder; of throughput, metrics, conflict, faults and
checkpoint_pause once the options are read, as --out is missing. serve and launch/run.py are left out. All examples run
on one CPU rank.

Reading order: case.py (an example as data), workspace.py (the files that it starts from), logs.py (Parquet of any
kind), server.py (runs a command in a fork of a process that has imported torch), resumed.py (a run that is interrupted
and resumed), invariants.py (what every answer must satisfy), results.py (what an accepted command must have written),
changes.py (which files it may change), targets.py (runs a case and counts it), values.py (what users write by mistake);
then the strategies and tests in test_fuzz_*.py, and campaign.py (`make fuzz`). past/ holds inputs that once failed, one
file each, which test_fuzz_past.py runs again. test_fuzz_invariants.py, test_fuzz_changes.py and test_fuzz_campaign.py
test the fuzzer itself.
"""
