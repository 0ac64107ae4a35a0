"""The numbers of a run in the tools of a team: trackers get what metrics.jsonl gets.

Reading order: tracker.py (what a tracker is), torchx_tracker.py, mlflow_tracker.py, chosen.py (which ones a run has).
Import from the modules. May import `runtime`.
"""
