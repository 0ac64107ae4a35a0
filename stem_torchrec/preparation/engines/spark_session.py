"""The session of Spark: that of spark-submit, SPARK_REMOTE or this program, or else one on this machine."""

import importlib.util
import os
import subprocess
from pathlib import Path
from typing import Any

from stem_torchrec.runtime.errors import UserError

_SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    # Columns of raw logs may differ in the case of a letter only.
    "spark.sql.caseSensitive": "true",
    # `spark_files` numbers rows by the places where parts of files begin, which are at least 1 MiB apart.
    "spark.sql.files.maxPartitionBytes": "134217728",
    "spark.sql.files.openCostInBytes": "4194304",
    # A busy machine takes longer than five minutes.
    "spark.sql.broadcastTimeout": "36000",
}
"""Of every session; whether it is ANSI stays as it is."""


def spark_session(folder: Path, *, memory: float, threads: int | None = None) -> tuple[Any, bool]:
    """The session, and whether this function started Spark.

    Args:
        folder: gets the log and the spill of a Spark that is started here.
        memory: GiB of its heap.
        threads: its processors; None for all of the machine.

    Raises UserError if pyspark is missing, or Spark does not start.
    """
    if importlib.util.find_spec("pyspark") is None:
        raise UserError("--engine spark needs pyspark; run: pip install 'stem_torchrec[spark]'")
    from pyspark.sql import SparkSession

    session = SparkSession.getActiveSession()
    own = session is None and not any(name in os.environ for name in ("SPARK_REMOTE", "PYSPARK_GATEWAY_PORT"))
    if session is not None:
        # Settings and views of the caller stay as they are.
        session = session.newSession()
    else:
        session = _start(folder, memory, threads) if own else SparkSession.builder.getOrCreate()
    for name, value in _SETTINGS.items():
        session.conf.set(name, value)
    return session, own


def _start(folder: Path, memory: float, threads: int | None) -> Any:
    """Starts Spark on this machine; what it says goes to a file."""
    from pyspark import SparkConf, SparkContext
    from pyspark.errors import PySparkException
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    cores = threads or os.cpu_count() or 1
    settings = {
        "spark.master": f"local[{threads or '*'}]",
        "spark.app.name": "stem-prepare",
        "spark.driver.memory": f"{round(memory * 1024)}m",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.local.dir": str(folder / "spill"),
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # Small ones are put together; each of many costs more than its rows.
        "spark.sql.shuffle.partitions": str(4 * cores),
    }
    log = folder / "spark.log"
    conf = SparkConf().setAll(list(settings.items()))
    try:
        with log.open("w") as file:
            gateway = launch_gateway(conf, popen_kwargs={"stderr": file, "stdout": subprocess.DEVNULL})
            return SparkSession(SparkContext(conf=conf, gateway=gateway))
    except (PySparkException, OSError) as error:
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        reason = lines[-1] if lines else str(error)
        raise UserError(f"Spark does not start ({reason.strip().rstrip('.')}); it needs Java 17 or 21.") from error
