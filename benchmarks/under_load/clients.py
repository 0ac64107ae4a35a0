"""Programs that ask a server as fast as it answers: wrk and hey."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stem_torchrec.runtime.errors import UserError

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}


@dataclass(frozen=True)
class Load:
    """What to send."""

    url: str
    kind: str
    """Content-Type."""
    body: Path
    connections: int
    seconds: float


@dataclass(frozen=True)
class Rates:
    """What was measured."""

    requests_per_second: float
    """Answers of status 200."""
    p50_ms: float
    p99_ms: float
    failed: int
    """Requests without an answer of status 200."""


def by_wrk(load: Load) -> Rates:
    """Asks by wrk."""
    script = load.body.with_suffix(".lua")
    script.write_text(
        f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{load.kind}"\n'
        f'local file = io.open({json.dumps(str(load.body))}, "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
    )
    # A request that takes long is no failure.
    options = ["-t", "1", "-c", str(load.connections), "-d", f"{load.seconds:g}s", "--timeout", "60s", "--latency"]
    options += ["-s", str(script)]
    text = _run(["wrk", *options, load.url])
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    of_status = int(refused[1]) if refused else 0
    failed = sum(map(int, errors.groups() if errors else ())) + of_status
    share = 1 - of_status / max(_number(r"(\d+) requests in", text), 1)
    return Rates(_number(r"Requests/sec:\s+([\d.]+)", text) * share, _time("50%", text), _time("99%", text), failed)


def by_hey(load: Load) -> Rates:
    """Asks by hey."""
    options = [
        "-c",
        str(load.connections),
        "-z",
        f"{load.seconds:g}s",
        "-m",
        "POST",
        "-T",
        load.kind,
        "-D",
        str(load.body),
    ]
    text = _run(["hey", *options, load.url])
    statuses = {int(status): int(count) for status, count in re.findall(r"\[(\d{3})\]\s+(\d+) responses", text)}
    errors = re.search(r"Error distribution:\n((?:\s+\[\d+\].*\n?)+)", text)
    failed = sum(count for status, count in statuses.items() if status != 200)
    failed += sum(map(int, re.findall(r"\[(\d+)\]", errors[1]))) if errors else 0
    times = {share: 1e3 * _number(rf"{share}%+ in ([\d.]+) secs", text) for share in (50, 99)}
    # It waits for the last answers, so the seconds are its own.
    answered = statuses.get(200, 0) / _number(r"Total:\s+([\d.]+) secs", text)
    return Rates(answered, times[50], times[99], failed)


CLIENTS: dict[str, Callable[[Load], Rates]] = {"wrk": by_wrk, "hey": by_hey}


def missing_clients() -> list[str]:
    """A sentence for each program that is not installed."""
    return [f"{name} is not installed, so nothing is asked by it." for name in CLIENTS if shutil.which(name) is None]


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{command[0]} failed ({result.stderr.strip() or result.stdout.strip()}).")
    return result.stdout


def _number(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    return float(match[1]) if match else float("nan")


def _time(share: str, text: str) -> float:
    """A percentile of wrk in milliseconds."""
    match = re.search(rf"{share}\s+([\d.]+)(us|ms|s|m)\b", text)
    return float(match[1]) * _UNITS[match[2]] if match else float("nan")
