"""A trained run where it is used: exported as a bundle, which scores rows in one process.

Reading order: manifest.py (what a bundle has), inputs.py (from rows to tensors), table_file.py (tables that are mapped
into memory), program.py and bundle.py load a bundle and score; they import neither torchrec nor fbgemm, and start no
process group. score_file.py is what `stem-score` does: row_files.py and csv_batches.py read rows, raw_values.py and
text_values.py make values of the spec's types of them, batch_scores.py scores them and names what is wrong, and
score_outputs.py writes. apply_deltas.py applies what a run ships to a copy of it, or by patch_bundle.py to a bundle.
served_model.py, export_program.py, trained_model.py and trained_run.py (a run's weights), run_log.py (what its log
gives), new_folder.py and export_run.py write a bundle.
Import from the modules. May import `transfer`, `training` and everything below them.
"""
