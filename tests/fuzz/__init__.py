"""A fuzzer of every command: what a user may type, write into a file or leave in a folder, and the answers to it.

An example fails on a traceback, a hang, an exit status that docs/errors.md does not list, or an accepted input that
breaks an invariant. `make test` runs a fixed sample of each target, `make fuzz` as many examples as it is told to, and
writes a summary.

Reading order: case.py (an example as data), workspace.py (the files that it starts from), logs.py (Parquet of any
kind), server.py (runs a command in a fork of a process that has imported torch), resumed.py (a run that is interrupted
and resumed), invariants.py (what every answer must satisfy), targets.py (runs a case and counts it), values.py (what
users write by mistake); then the strategies and tests in test_fuzz_*.py, and campaign.py (`make fuzz`). past/ holds
inputs that once failed, one file each, which test_fuzz_past.py runs again.
"""
