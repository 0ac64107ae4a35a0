"""The first stage: the rows of a log before anything is fitted.

sources.py, cell_values.py: raw files as typed tables. kept_rows.py: joined, filtered and without repeats.
row_checks.py: labels, ids and weights in their ranges. refused_cells.py: where a cell stands that they refuse. May
import `engines`, `raw_files`, `specs`, `expressions` and `runtime`.
"""
