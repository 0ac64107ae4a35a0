"""A training run: a Trainer that one can step, its optimizers, evaluation, run folder, checkpoints and best weights.

Reading order: trainer.py and built_run.py (the order of it all), loop.py (the steps), state.py, feed.py, callbacks.py;
assembly.py, optimizers.py, sparse_optimizers.py, dense_optimizer.py, rate_schedule.py, frozen.py, fresh_tables.py,
nonfinite.py, memory_needs.py, beginning.py; evaluation.py, run_evaluation.py, grown_log.py, evaluation_outputs.py,
gate_weights.py, watched_metric.py, early_stopping.py, best_weights.py, best_by_task.py; configuration.py, recipes.py,
steps_by_rows.py, open_fields.py, run_data.py, run_folder.py, recorded_options.py, run_start.py, metrics_log.py,
meter.py, peak_memory.py, table_changes.py, run_deltas.py, chosen_deltas.py, run_checkpoints.py; left_out.py (one of
several models).
Import from the modules. May import every package but `transfer`, `tuning` and `comparison`.
"""
