"""What is inside a trained run, or two side by side: gates, tables, ids, and metrics with intervals.

Reading order: options.py; predicted_rows.py predicts the rows of a split, gate_facts.py tells what the gates read;
train_ids.py counts ids, same_ids.py tells whether those of two runs mean the same, start_weights.py knows where tables
started, table_facts.py measures them, inspected_run.py puts a run together, two_runs.py two; sections.py,
prediction_sections.py, table_sections.py and change_section.py write text and page, numbers_file.py the JSON,
inspect_runs.py all of it.
Import from the modules. May import `comparison`, `run_report`, `transfer`, `training` and everything below them.
"""
