"""What a log is made from, as a user writes it, checked and with its expressions read.

spec.py, splits.py: the fields. spec_file.py: YAML with variables. checks.py: fields that exclude each other.
expression_reader.py: text to trees. row_order.py, spec_expressions.py: all expressions of a spec.
installed_specs.py: those of public logs. May import `expressions`, `data`, `config` and `runtime`.
"""
