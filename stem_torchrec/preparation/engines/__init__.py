"""What runs the queries: DuckDB in this process, or Spark on a cluster; both give the same log.

engine.py: what an engine does. duckdb_engine.py, duckdb_errors.py: the default. spark_engine.py, spark_session.py,
spark_files.py, spark_errors.py: the cluster's. May import `raw_files`, `specs`, `expressions` and `runtime`.
"""
