"""Exact metrics over all rows and ranks, the collectives that they need, and predictions on disk.

Reading order: multi_task.py, task_metrics.py, task_chunk.py, auc.py; value_metrics.py and value_chunk.py for labels
that are not binary; ordered_pairs.py, pair_counts.py, sorted_rows.py, collectives.py, predictions.py.
Import from the modules. May import `data`, `config` and `runtime`.
"""
