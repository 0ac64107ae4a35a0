"""What a run ships while it trains: deltas, which have all dense weights and the rows of tables that changed.

Reading order: manifest.py (what a delta has), row_files.py (rows in a precision and a format), touched.py (which rows
changed), shard_rows.py (their weights), log_files.py (what else is shipped), began.py and joining.py (whether a run
goes on with deltas), kept.py (which deltas stay), writer.py, then chain.py (which deltas a copy lacks) and
copied_run.py (applies them to a copy).
manifest.py, row_files.py, log_files.py and chain.py import neither torchrec nor fbgemm: `serving` applies deltas with
them.
Import from the modules. May import `checkpoints`, `tables`, `preparation`, `data`, `config` and `runtime`.
"""
