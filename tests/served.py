"""A server in a process of its own on a small bundle, and requests to it."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors.torch import load_file, save_file

from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import PROGRAM_FILE, TABLES_FILE, file_entries, read_manifest, write_manifest
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import train

from bundles import MODELS, SPEC, raw
from prepared_logs import spec_of
from runs import this_process

ROOT = Path(__file__).parent.parent
TOKEN = "0123456789abcdef-token"
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
OPTIONS = (
    *("--limits.body-mib", "1", "--limits.rows", "3000", "--limits.list-items", "50"),
    *("--limits.seconds", "5", "--limits.connections", "40", "--limits.bodies", "2"),
)


def write_bundles(folder: Path) -> None:
    """Writes the bundle `a` and others like it: `b` with other weights, `one_task` that lacks a task,
    `not_finite` that has no number for the last id of each table, `ids` that takes rows of ids, and `damaged`.

    One rank of a process group calls it.
    """
    sources = {"log": SPEC["sources"]["log"] | {"files": str(folder / "raw.csv")}}
    spec = spec_of(folder, raw(), **(SPEC | {"sources": sources}))
    prepare_log(PrepareOptions(spec=str(spec), out=str(folder / "log"), report=False))
    config = tiny()
    config = replace(
        config,
        data=replace(config.data, path=str(folder / "log"), batch_size=64),
        model=MODELS["stem"],
        train=replace(config.train, epochs=1),
        output_dir=str(folder / "run"),
    )
    train(config, this_process())
    first = folder / "bundles/a"
    export_run(ExportConfig(run=str(folder / "run"), out=str(first)))
    (folder / "bundles/current").symlink_to("a")
    for name in ("b", "one_task", "not_finite", "ids", "damaged"):
        shutil.copytree(first, folder / "bundles" / name)
    tables = load_file(first / TABLES_FILE)
    save_file({name: -table for name, table in tables.items()}, folder / "bundles/b" / TABLES_FILE)
    for table in tables.values():
        table[-1] = float("nan")
    save_file(tables, folder / "bundles/not_finite" / TABLES_FILE)
    manifest = read_manifest(first)
    for name in ("b", "not_finite"):
        changed = manifest.files | file_entries(folder / "bundles" / name, [TABLES_FILE])
        write_manifest(folder / "bundles" / name, replace(manifest, files=changed))
    write_manifest(folder / "bundles/one_task", replace(manifest, tasks=manifest.tasks[:1]))
    write_manifest(folder / "bundles/ids", replace(manifest, raw=False))
    (folder / "bundles/damaged" / PROGRAM_FILE).write_bytes(b"no program")


@dataclass(frozen=True)
class Answer:
    """What the server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def arrow(self) -> pa.Table:
        return pa.ipc.open_stream(self.body).read_all()


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def ask(
        self,
        path: str,
        body: Any = None,
        kind: str | None = JSON,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """Sends a request: bytes as they are, and anything else as JSON."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {token}"} if token else {}
        sent |= ({"Content-Type": kind} if kind else {}) | dict(headers or {})
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels that begin with `name`."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def arguments(bundle: Path, *options: str) -> list[str]:
    """The command line of a server at a free port."""
    return [sys.executable, str(ROOT / "stem_torchrec/serve.py"), "--bundle", str(bundle), "--http", "0", *options]


@contextmanager
def running_server(bundle: Path, *options: str, token: str | None = TOKEN) -> Iterator[Server]:
    """A server until the end of the block; its errors go to standard error."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"STEM_SERVE_TOKEN": token} if token else {})
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            arguments(bundle, *options), stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise RuntimeError(errors.read())
            host, port = line.split()[0].removeprefix("http://").rsplit(":", 1)
            yield Server(process, host, int(port))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            errors.seek(0)
            print(errors.read(), file=sys.stderr)


def stream_of(table: pa.Table, **options: Any) -> bytes:
    """A table as a stream of Arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
