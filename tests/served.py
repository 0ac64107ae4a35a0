"""A server in a process of its own on a small bundle, and requests to it."""

import http.client
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from safetensors.torch import load_file, save_file

from stem_torchrec.calibration.calibration_file import CALIBRATION_FILE, Calibration, RowsOfLog, write_calibration
from stem_torchrec.calibration.curves import PlattCurve
from stem_torchrec.preparation.options import PrepareOptions
from stem_torchrec.preparation.prepare_log import prepare_log
from stem_torchrec.preparation.transforms import TRANSFORMS_FILE
from stem_torchrec.serving.export_run import ExportConfig, export_run
from stem_torchrec.serving.manifest import (
    PROGRAM_FILE,
    TABLES_FILE,
    Manifest,
    file_entries,
    read_manifest,
    write_manifest,
)
from stem_torchrec.training.recipes import tiny
from stem_torchrec.training.trainer import train

from bundles import MODELS, SPEC, raw
from prepared_logs import spec_of
from runs import this_process
from small_runs import Forked

ROOT = Path(__file__).parent.parent
TOKEN = "0123456789abcdef-token"
JSON, ARROW = "application/json", "application/vnd.apache.arrow.stream"
DRAIN = 0.5
OPTIONS = (
    *("--limits.body-mib", "1", "--limits.rows", "3000", "--limits.list-items", "50"),
    *("--limits.seconds", "5", "--limits.connections", "40", "--limits.bodies", "2", "--drain-seconds", str(DRAIN)),
)


def write_bundles(folder: Path) -> None:
    """Writes the bundle `a` of a calibrated run and others like it: `b` with other weights, `one_task` that lacks a
    task, `not_finite` that has no number for the last id of each table, `ids` that takes rows of ids, `lists` whose
    tags are lists of texts, and `damaged`.

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
    calibrate(first)
    (folder / "bundles/current").symlink_to("a")
    for name in ("b", "one_task", "not_finite", "ids", "lists", "damaged"):
        shutil.copytree(first, folder / "bundles" / name)
    tables = load_file(first / TABLES_FILE)
    save_file({name: -table for name, table in tables.items()}, folder / "bundles/b" / TABLES_FILE)
    for table in tables.values():
        table[-1] = float("nan")
    save_file(tables, folder / "bundles/not_finite" / TABLES_FILE)
    take_lists(folder / "bundles/lists")
    manifest = read_manifest(first)
    for name, file in (("b", TABLES_FILE), ("not_finite", TABLES_FILE), ("lists", TRANSFORMS_FILE)):
        write_with(manifest, folder / "bundles" / name, file)
    write_manifest(folder / "bundles/one_task", replace(manifest, tasks=manifest.tasks[:1]))
    write_manifest(folder / "bundles/ids", replace(manifest, raw=False))
    (folder / "bundles/damaged" / PROGRAM_FILE).write_bytes(b"no program")


def write_with(manifest: Manifest, bundle: Path, name: str) -> None:
    """Writes the manifest of a bundle with a file that is new or has changed."""
    write_manifest(bundle, replace(manifest, files=manifest.files | file_entries(bundle, [name])))


def calibrate(bundle: Path) -> None:
    """Adds curves that change each probability."""
    rows = RowsOfLog("log", "valid", 0, 100, "00")
    platt = {"buy": PlattCurve(a=1.5, b=-0.4), "click": PlattCurve(a=0.5, b=0.1)}
    calibration = Calibration(weights="sha256:00", fitted_on=rows, judged_on=rows, platt=platt)
    write_calibration(bundle / CALIBRATION_FILE, calibration)
    write_with(read_manifest(bundle), bundle, CALIBRATION_FILE)


def take_lists(bundle: Path) -> None:
    """Makes a bundle read its tags as lists of texts, where it read one text with all of them."""
    transforms = json.loads((bundle / TRANSFORMS_FILE).read_text())
    transforms["columns"]["tags"] = "list<text>"
    vocabulary = transforms["features"]["tags"]
    assert vocabulary["arguments"][0]["call"] == "split"
    vocabulary["arguments"] = [{"column": "tags"}]
    (bundle / TRANSFORMS_FILE).write_text(json.dumps(transforms))


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

    process: Forked
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

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the process."""
        os.kill(self.process.pid, number)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels that begin with `name`."""
        lines = self.ask("/metrics").body.decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


@contextmanager
def running_server(bundle: Path, *options: str, token: str | None = TOKEN) -> Iterator[Server]:
    """A server at a free port until the end of the block, forked from a process that has imported torch."""
    line = [str(ROOT / "stem_torchrec/serve.py"), "--bundle", str(bundle), "--http", "0", *options]
    environment = os.environ | ({"STEM_SERVE_TOKEN": token} if token else {})
    process = Forked(line, environment, ROOT)
    printed = []
    try:
        for text in process.stdout:
            printed.append(text)
            if text.startswith("http://"):
                break
        else:
            raise RuntimeError("".join(printed))
        host, port = text.split()[0].removeprefix("http://").rsplit(":", 1)
        yield Server(process, host, int(port))
    finally:
        process.kill()
        process.wait(20)
        process.stdout.close()


def stream_of(table: pa.Table, **options: Any) -> bytes:
    """A table as a stream of Arrow."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
