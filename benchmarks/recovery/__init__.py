"""Runs that are killed and resumed, and what checkpoints cost.

In reading order: train_runs.py starts, kills and compares runs, for tests too; soak.py is benchmarks/faults.py;
pauses.py is benchmarks/checkpoint_pause.py. It may import stem_torchrec and common.
"""
