"""Raw logs to the Parquet that training reads: a spec becomes queries of an engine, and these become a log.

Reading order: spec.py (what a spec says), spec_file.py; prepare_log.py (the command), make_log.py (its four stages);
engine.py (what an engine does), duckdb_engine.py, engine_errors.py, stages.py; source_files.py, sources.py;
expression_reader.py, row_order.py, expressions_of_spec.py; rows.py, row_checks.py; statistics_of_train.py, fitting.py,
id_spaces.py, earlier_log.py, vocabularies.py; encoding.py, log_writer.py; report_facts.py, report_counts.py,
leak_check.py, report_features.py, report_warnings.py, report.py; options.py. Import from the modules. May import
`expressions`, `data`, `config` and `runtime`.
"""
