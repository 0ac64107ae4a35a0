"""The cases of benchmarks/serving_load.py and their report."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pyarrow as pa
from annotated_types import Interval
from tabulate import tabulate

from stem_torchrec.config import parse_arguments
from stem_torchrec.config.serialization import from_dict, to_dict
from stem_torchrec.runtime.errors import UserError
from stem_torchrec.runtime.path_options import LocalFolder, LocalOutput
from stem_torchrec.server.input_columns import input_columns
from stem_torchrec.serving.bundle import Bundle, load_bundle
from stem_torchrec.serving.manifest import MANIFEST_FILE, checksum
from stem_torchrec.serving.raw_values import typed

from common.load import CpuTime, busy_with_others, cores
from common.machine import describe_run
from common.output import check_out, make_folder, record_identity, write_whole
from under_load.clients import CLIENTS, Load, missing_clients
from under_load.server import Server, running_server

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"


@dataclass(frozen=True)
class ServingLoadConfig:
    """What to measure: one row again and again, the example of the bundle."""

    bundle: LocalFolder = ""
    """The bundle that is served."""
    out: LocalOutput = ""
    """Folder for serving_load.md and identity.json."""
    rows: tuple[Annotated[int, Interval(ge=1, le=10_000)], ...] = (1, 64, 1024)
    """Rows of a request."""
    connections: tuple[Annotated[int, Interval(ge=1, le=900)], ...] = (1, 32)
    """Clients that ask at once, each again when it has its answer."""
    seconds: Annotated[float, Interval(ge=1, le=3600)] = 10
    """Seconds of each case."""


def read_command_line(args: Sequence[str] | None = None, *, description: str | None = None) -> ServingLoadConfig:
    """What to measure; raises UserError for values that make no sense.

    Args:
        args: the command line, that of this process if None.
        description: what `--help` shows above the options.
    """
    config = parse_arguments(ServingLoadConfig(), args, description=description or "")
    check_out(config.out)
    if not config.bundle:
        raise UserError("say which bundle to serve: --bundle BUNDLE.")
    return config


def measure(config: ServingLoadConfig) -> None:
    """Runs every case and writes the report; raises UserError before that for a folder of another load."""
    folder, start = make_folder(config.out), CpuTime.now()
    identity = {"config": asdict(config) | {"out": ""}, "bundle": checksum(Path(config.bundle) / MANIFEST_FILE)}
    head = describe_run("serving_load.py")
    record_identity(folder / "identity.json", identity, head, kind="load", as_of_now=identity_of_now)
    bundle, skipped, results = load_bundle(config.bundle), missing_clients(), list[dict[str, Any]]()
    for sentence in skipped:
        print(f"note: {sentence}")
    with TemporaryDirectory(prefix="serving-load-") as bodies, running_server(config.bundle) as server:
        before = server.memory()
        for case in _cases(config, bundle, server, Path(bodies)):
            results.append(case)
            print("  ".join(f"{name} {value}" for name, value in case.items()), flush=True)
        memory = {"after its start": before, "at the end": server.memory()}
        seconds = server.seconds
    end = CpuTime.now()
    # The server and the clients are children that have ended, and so belong to this process.
    others = busy_with_others(end.at - start.at, end.busy - start.busy, end.own - start.own)
    head |= {"load": f"others kept {others:.1f} of {cores()} cores busy"}
    columns = ["by", "body", "rows", "clients", "requests/s", "rows/s", "P50 ms", "P99 ms", "failed"]
    text = ["# The server under load", "", *(f"- {name}: {value}" for name, value in head.items()), ""]
    text += [f"{len(bundle.input_columns)} columns, {len(bundle.tasks)} tasks, {bundle.manifest.arch}. "]
    text += [f"The server answers {seconds:.1f} s after its start. "]
    text += [f"Memory: {', '.join(f'{mib:,.0f} MiB {when}' for when, mib in memory.items())}.", ""]
    text += [tabulate([list(result.values()) for result in results], columns, tablefmt="github", floatfmt=",.1f"), ""]
    text += [
        "The clients and the server share the cores. P50 and P99 are of all requests. Those that failed got no answer",
        "of status 200, as the server refuses what goes beyond its limits; rates leave them out.",
        *skipped, "",
    ]  # fmt: skip
    write_whole(folder / "serving_load.md", "\n".join(text))
    print(f"report: {folder / 'serving_load.md'}")


def identity_of_now(recorded: dict[str, Any]) -> dict[str, Any]:
    """What identity.json of some version has, with the defaults of what it lacks; see `check_recorded`."""
    if "config" not in recorded:
        return recorded
    return recorded | {"config": to_dict(from_dict(ServingLoadConfig, recorded["config"]))}


def _cases(config: ServingLoadConfig, bundle: Bundle, server: Server, bodies: Path) -> Iterator[dict[str, Any]]:
    example = server.example()
    for rows in config.rows:
        texts = {
            JSON: json.dumps({"rows": [example] * rows}).encode(),
            ARROW: arrow_body(example, bundle, rows=rows),
        }
        for kind, text in texts.items():
            body = bodies / "body"
            body.write_bytes(text)
            server.check_answer(kind, text)
            for connections in config.connections:
                load = Load(f"{server.url}/score", kind, body, connections, config.seconds)
                for name, ask in CLIENTS.items():
                    if any(sentence.startswith(name) for sentence in missing_clients()):
                        continue
                    rates = ask(load)
                    yield {
                        "by": name,
                        "body": "JSON" if kind == JSON else "Arrow",
                        "rows": rows,
                        "clients": connections,
                        "requests_per_second": rates.requests_per_second,
                        "rows_per_second": rates.requests_per_second * rows,
                        "p50_ms": rates.p50_ms,
                        "p99_ms": rates.p99_ms,
                        "failed": rates.failed,
                    }


def arrow_body(example: dict[str, Any], bundle: Bundle, *, rows: int) -> bytes:
    """A request of Arrow with the same row again and again, in the types of the bundle's columns.

    An example has the values of JSON, where a date is text; a stream of Arrow has types.
    """
    columns = input_columns(bundle)
    table = pa.table({name: typed([value] * rows, columns[name].kind)[0] for name, value in example.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream
