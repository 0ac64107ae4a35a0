"""Preparing a log from raw files: what the benchmark of it reads.

tiktok_rows.py writes short video rows of any number in the format of the ICME 2019 challenge, for tests too. It imports
no other package.
"""
