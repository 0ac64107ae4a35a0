"""Raw logs to the Parquet that training reads: a spec becomes queries of an engine, and these become a log.

Reading order: spec.py (what a spec says), spec_file.py, spec_checks.py; prepare_log.py (the command), make_log.py (its
three stages); engine.py (what an engine does), duckdb_engine.py, engine_errors.py, stages.py; source_names.py,
source_files.py, csv_text.py, copies.py, source_columns.py, cell_types.py, source_values.py, sources.py,
refused_cells.py;
expression_reader.py, row_order.py, expressions_of_spec.py; rows.py, row_checks.py; statistics_of_train.py, fitting.py,
id_spaces.py; encoding.py, log_writer.py; options.py. Import from the modules. May import `expressions`, `data`,
`config` and `runtime`.
"""
