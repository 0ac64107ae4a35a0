"""Raw logs to the Parquet that training reads: a spec becomes queries of an engine, and these become a log.

Reading order: spec.py (what a spec says), spec_file.py, spec_checks.py; prepare_log.py (the command), make_log.py (its
four stages); engine.py (what an engine does), duckdb_engine.py, engine_errors.py, spark_engine.py, spark_session.py,
spark_files.py, spark_errors.py, stages.py; source_names.py,
source_files.py, csv_text.py, copies.py, source_columns.py, cell_types.py, source_values.py, sources.py,
refused_cells.py;
expression_reader.py, row_order.py, expressions_of_spec.py; rows.py, row_checks.py; statistics_of_train.py, fitting.py,
id_spaces.py, earlier_log.py, vocabularies.py; feature_trees.py, encoding.py, log_writer.py, transforms.py (what serving
does); report_facts.py, report_counts.py, leak_check.py, report_features.py, report_warnings.py, report.py; options.py.
A spec is guessed from raw files by
guess_command.py, guess_spec.py; guess_inputs.py, guess_source.py, guess_dialect.py, guess_types.py; guess_facts.py,
guess_names.py, guess_time.py, guess_split.py, guess_labels.py, guess_leaks.py; guess_features.py (the rules);
guess_document.py, guess_text.py. Import from the modules. May import `expressions`, `data`, `config` and `runtime`.
"""
