"""Rows of Parquet to TorchRec Batches: the schema, the files, this rank's rows, and a synthetic log.

Reading order: schema.py, names.py, columns.py (what a run reads of it), listing.py (the files of a split), footers.py
(what they tell without a row), column_types.py and type_checks.py (which types serve), files.py (their row groups),
label_kinds.py, label_statistics.py, checks.py, rows.py, spans.py, reader.py, arrays.py, batch.py, unseen_ids.py,
text_groups.py, loader.py, label_counts.py; folder.py, new_log.py, vocabulary_values.py, synthetic.py,
synthetic_days.py, synthetic_world.py, task_names.py, pair_auc.py.
Import from the modules.
May import `config` and `runtime`.
"""
