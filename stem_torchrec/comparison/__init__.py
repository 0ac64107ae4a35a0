"""Models side by side: their runs, statistics with intervals, and the report.

Reading order: variants.py has what a model of a comparison is, built_in.py those that are there, variants_file.py reads
further ones, settings.py has what they may be set to, parts.py divides one into what a run trains, runs.py trains and
tests one with one seed, grid_search.py chooses settings, compare_config.py has the options, grid_options.py and
options.py check the command line, resolved.py checks it against the log, recorded.py against what the folder has,
train_all.py runs it all; intervals.py, value_measures.py, resampling.py, task_scores.py, multiplicity.py, comparable.py
and diagnostics.py compute what is reported, from scored_rows.py, or of several logs from several_logs.py; report.py,
result_sections.py, comparable_sections.py, diagnostic_sections.py, costs.py, recommend.py and write_report.py write it;
log_by_log.py trains and reports, on one log or on several.
Import from the modules. May import `transfer`, `tuning`, `training` and everything below them.
"""
