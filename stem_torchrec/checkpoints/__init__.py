"""Checkpoints of a run in training: all that it needs to go on, on these ranks or others."""
