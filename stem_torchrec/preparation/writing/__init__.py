"""The third stage: the kept rows as the columns of a log, and its files.

feature_trees.py: the last steps of a feature as trees. encoding.py: values to ids and scaled numbers. log_writer.py:
splits, vocabularies, schema.json and transforms.json. May import `fitting`, `engines`, `specs`, `expressions`, `data`,
`config`, `runtime` and `transforms`.
"""
