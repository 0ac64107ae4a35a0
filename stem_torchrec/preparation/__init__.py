"""Raw logs to the Parquet that training reads: a spec becomes queries of an engine, and these become a log.

Reading order: options.py, prepare_log.py (the command), make_log.py (the four stages rows, fit, write and report),
stages.py (what the user sees of them), transforms.py (the log's features without an engine, for serving).

The rooms, from the lowest up: `specs`, `raw_files`, `engines`; then one for each stage: `rows`, `fitting`, `writing`,
`report`; and `guessing`, for whoever has no spec. Import from the modules. May import `expressions`, `data`, `config`
and `runtime`.
"""
