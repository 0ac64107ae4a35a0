"""A trained run where it is used: exported as a bundle, which scores rows in one process.

Reading order: manifest.py (what a bundle has), inputs.py (from rows to tensors), table_file.py (tables that are mapped
into memory), program.py and bundle.py load a bundle and score; they import neither torchrec nor fbgemm, and start no
process group. served_model.py, export_program.py, trained_model.py (a run's weights), run_log.py (what its log gives),
new_folder.py and export_run.py write one.
Import from the modules. May import `transfer`, `training` and everything below them.
"""
