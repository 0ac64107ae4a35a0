"""Spark as the engine: on a cluster, or on the processors of this machine.

What it keeps and writes lies in the folder of the log, which all of its machines must see.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow.parquet as pq

from stem_torchrec.expressions.function import Engine as EngineName
from stem_torchrec.preparation.engines.engine import ROW
from stem_torchrec.preparation.engines.spark_errors import sentences_of_spark
from stem_torchrec.preparation.engines.spark_files import SparkFiles, spark_path
from stem_torchrec.preparation.engines.spark_session import spark_session
from stem_torchrec.preparation.raw_files.copies import readable
from stem_torchrec.preparation.specs.spec import ColumnType, Source
from stem_torchrec.runtime.whole_file import whole_file

_DONE = "_SUCCESS"
"""The file that Spark writes last into a folder."""
_GROUPS_PER_FILE = 32
_BYTES = {"array": 8, "string": 16}
"""Of a value, where no file tells; numbers take fewer than 8."""
_SAMPLED_FILES = 4
_UNREAD = (".xz", ".zst")
"""Packings that Spark has no code for, or only with libraries of the system."""


class SparkEngine:
    """Keeps tables as folders of Parquet in `folder/kept`.

    Args:
        folder: exists, and belongs to this process.
        memory: GiB of the heap of a Spark that runs on this machine alone.
        threads: processors of such a Spark.
    """

    name: EngineName = "spark"

    def __init__(self, folder: Path, *, memory: float, threads: int | None = None) -> None:
        self._folder, self._copies = folder.absolute() / "kept", folder.absolute() / "copies"
        self._session, self._own = spark_session(folder.absolute(), memory=memory, threads=threads)
        # The errors that are told apart are causes of others, which Spark shows with Java's stack only.
        self._session.conf.set("spark.sql.pyspark.jvmStacktrace.enabled", "true")
        self._backend = ibis.pyspark.connect(self._session)
        self._files = SparkFiles(self._session)
        self._scanned: dict[str, tuple[str, Source]] = {}
        self._views = 0
        self._kept: list[Path] = []

    def scan(self, files: Sequence[str], source: Source, types: Mapping[str, ColumnType]) -> ir.Table:
        """The rows of files; see Engine."""
        paths = readable(files, source, self._copies, unread=_UNREAD)
        self._scanned |= {path: (file, source) for path, file in paths.items()}
        with sentences_of_spark(self._scanned):
            return self._view(self._files.read(paths, source, types))

    def keep(self, name: str, table: ir.Table) -> ir.Table:
        """Keeps the rows of a query; see Engine."""
        from pyspark.sql import functions as F

        # A name may have any characters.
        folder = self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]
        self._kept.append(folder)
        reader = self._session.read
        if not (folder / _DONE).exists():
            with sentences_of_spark(self._scanned):
                frame = self._frame(table)
                if ROW not in frame.columns:
                    # Behind a sort, the partitions are in its order.
                    frame = frame.withColumn(ROW, F.monotonically_increasing_id())
                options = {"mapreduce.fileoutputcommitter.marksuccessfuljobs": "true"}
                frame.write.mode("overwrite").options(**options).parquet(spark_path(str(folder), escaped=False))
                # Otherwise Spark looks for it in the files.
                reader = reader.schema(frame.schema)
        with sentences_of_spark(self._scanned):
            return self._view(reader.parquet(spark_path(str(folder))))

    def settled(self, name: str, table: ir.Table) -> ir.Table:
        """The kept rows; see Engine. A sort of Spark computes its rows twice."""
        return self.keep(name, table)

    def rows(self, table: ir.Table) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        with sentences_of_spark(self._scanned):
            return [tuple(row) for row in self._frame(table).collect()]

    def write(self, table: ir.Table, folder: Path, *, row_group_size: int) -> None:
        """Writes the rows of a query; see Engine. Row groups are of bytes, about those of so many rows."""
        row_bytes = self._bytes_of_row(table)
        options = {
            "maxRecordsPerFile": row_group_size * _GROUPS_PER_FILE,
            "parquet.block.size": max(round(row_group_size * row_bytes), 1024),
            "compression": "zstd",
            "mapreduce.fileoutputcommitter.marksuccessfuljobs": "false",
        }
        with sentences_of_spark(self._scanned):
            self._frame(table).write.mode("overwrite").options(**options).parquet(
                spark_path(str(folder), escaped=False)
            )
        files = sorted(folder.glob("part-*.parquet"))
        # A sort leaves some partitions without rows.
        full = [file for file in files if pq.read_metadata(file).num_rows] or files[:1]
        for file in (*folder.glob(".*.crc"), *(set(files) - set(full))):
            file.unlink()
        for i, file in enumerate(full):
            file.rename(folder / f"part-{i:05}.parquet")

    def write_file(self, table: ir.Table, file: Path, *, row_group_size: int) -> None:
        """Writes the rows of a query as one file; see Engine. The parts are put together here."""
        parts = file.with_name(f".{file.name}.parts")
        try:
            self.write(table, parts, row_group_size=row_group_size)
            files = sorted(parts.glob("*.parquet"))
            with (
                whole_file(file) as new,
                pq.ParquetWriter(new, pq.read_schema(files[0]).remove_metadata(), compression="zstd") as writer,
            ):
                for part in files:
                    for batch in pq.ParquetFile(part).iter_batches(row_group_size):
                        writer.write_batch(batch.replace_schema_metadata(None), row_group_size)
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def parquet(self, path: Path) -> ir.Table:
        """The rows of a Parquet file, or of a folder of such files."""
        with sentences_of_spark(self._scanned):
            return self._view(self._session.read.parquet(spark_path(str(path))))

    def progress(self) -> float | None:
        """The percentage of the stages that run; None on a remote Spark, which does not tell."""
        from pyspark.sql.utils import is_remote

        if is_remote():
            return None
        tracker = self._session.sparkContext.statusTracker()
        stages = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
        tasks = sum(stage.numTasks for stage in stages if stage)
        return 100 * sum(stage.numCompletedTasks for stage in stages if stage) / tasks if tasks else -1.0

    def close(self) -> None:
        """Ends a Spark that was started here."""
        if self._own:
            self._backend.disconnect()

    def _frame(self, table: ir.Table) -> Any:
        return self._session.sql(self._backend.compile(table))

    def _view(self, frame: Any) -> ir.Table:
        self._views += 1
        frame.createOrReplaceTempView(f"view_{self._views}")
        return self._backend.table(f"view_{self._views}")

    def _bytes_of_row(self, table: ir.Table) -> float:
        """The bytes of a row before compression: what they are in a kept table with the same columns, or a guess."""
        for folder in reversed(self._kept):
            footers = [pq.read_metadata(file) for file in sorted(folder.glob("*.parquet"))[:_SAMPLED_FILES]]
            rows = sum(footer.num_rows for footer in footers)
            if rows and set(table.columns) <= set(footers[0].schema.to_arrow_schema().names):
                groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
                chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
                wanted = [chunk for chunk in chunks if chunk.path_in_schema.split(".list.")[0] in table.columns]
                return sum(chunk.total_uncompressed_size for chunk in wanted) / rows
        kinds = map(str, table.schema().types)
        return float(sum(next((size for name, size in _BYTES.items() if kind.startswith(name)), 4) for kind in kinds))
