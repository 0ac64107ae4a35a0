"""From Parquet logs to TorchRec batches."""
