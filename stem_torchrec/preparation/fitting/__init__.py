"""The second stage: what is fitted on train, or taken over from an earlier log.

statistics_of_train.py: exact statistics by counting. fit.py: edges, means and deviations, and the trees that have them.
id_spaces.py, vocabularies.py: values that get ids. earlier_log.py: another day's ids and constants. May import
`engines`, `specs`, `expressions`, `data`, `config`, `runtime` and `transforms`.
"""
