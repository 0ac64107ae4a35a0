"""The short video challenge of ICME 2019, track 1; the benchmark of the preparation has the same writer."""

from prepare.tiktok_rows import COLUMNS, DAYS, FILE, FIRST_TIME, write_tiktok

__all__ = ["COLUMNS", "DAYS", "FILE", "FIRST_TIME", "write_tiktok"]
