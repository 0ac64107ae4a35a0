"""A spec from raw files alone: what their columns are, and what becomes of them, each with its reason.

command.py, guess_spec.py: the way. inputs.py, source.py, dialect.py, column_types.py: how the files are written.
facts.py, column_names.py: what the columns hold. times.py, split.py, labels.py, leaks.py, features.py: the rules.
document.py, commented_yaml.py: the spec as text. May import `report`, `rows`, `engines`, `raw_files`, `specs`,
`expressions`, `data`, `runtime` and `options`.
"""
