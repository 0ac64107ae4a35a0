"""Expressions on the columns of a raw log.

They are written in SQL, read into a tree, and computed by an engine or on a batch of Arrow, with equal results.

Reading order: value_types.py, expression.py (the tree and its JSON), sql.py (SQL to the tree), time_zones.py,
sql_subset.py; function.py (what a function is), functions.py (the table of all), logic_functions.py,
number_functions.py, text_functions.py, casts.py, time_functions.py, list_functions.py, fitted_functions.py,
id_functions.py, hashes.py, engine_functions.py (what engines spell differently), exact_integers.py, arrow_arrays.py;
relational.py (the tree as an Ibis value), arrow_evaluation.py. Import from the modules. May import `runtime`.
"""
