"""Preparing a log from raw files: rows per second, peak memory and spill, beside pandas.

Reading order: run.py, cases.py, pandas_side.py (what is measured beside it); tiktok_rows.py writes short video rows of
any number in the format of the ICME 2019 challenge, for tests too, and imports no other package.
"""
