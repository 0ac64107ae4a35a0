"""Comparing models on one log: runs, statistics, sections of the report."""
