"""Rows of Parquet to TorchRec Batches: the schema, the files, this rank's rows, and a synthetic log.

Reading order: schema.py, files.py, label_kinds.py, checks.py, rows.py, spans.py, reader.py, batch.py, loader.py,
label_counts.py; folder.py, new_log.py, synthetic.py, synthetic_world.py, task_names.py. Import from the modules.
May import `config` and `runtime`.
"""
