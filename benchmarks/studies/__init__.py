"""Benchmarks of one or two files each.

exact_metrics.py is benchmarks/metrics.py, and metrics_worker.py the process of one of its ranks; task_conflict.py is
benchmarks/conflict.py; settings_trial.py is benchmarks/settings.py, and settings_report.py its report; gpu_report.py
writes the report of benchmarks/gpu.sh; table_sharing.py is benchmarks/large_tables.py, table_reader.py one of its
processes, and sparse_tables.py makes its bundle. It may import stem_torchrec and common.
"""
