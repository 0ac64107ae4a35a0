"""A server of its own process, and what it takes to start."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from stem_torchrec.runtime.errors import UserError

from common.processes import ROOT


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    url: str
    process: int
    seconds: float
    """From the start of the process to its first answer."""

    def memory(self) -> float:
        """Its resident memory now, in MiB; pages of tables count where they were read."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def check_answer(self, kind: str, body: bytes) -> None:
        """Asks once; raises UserError with the answer if the request that is to be measured is refused."""
        request = Request(f"{self.url}/score", body, {"Content-Type": kind})
        try:
            urlopen(request).close()
        except HTTPError as error:
            raise UserError(f"the server refuses the request to measure: {error.read().decode()[:500]}") from error

    def example(self) -> dict[str, Any]:
        """A row that its bundle scores."""
        document = json.loads(urlopen(f"{self.url}/openapi.json").read())
        row: dict[str, Any] = document["components"]["schemas"]["Row"]["example"]
        return row


@contextmanager
def running_server(bundle: str, *options: str) -> Iterator[Server]:
    """A server of a bundle until the end of the block; raises UserError if it does not start."""
    command = [sys.executable, str(ROOT / "stem_torchrec/serve.py"), "--bundle", bundle, "--http", "0", *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise UserError(f"stem-serve did not start, with status {process.wait()}; its error stands above.")
        url = line.split()[0]
        urlopen(f"{url}/ready").close()
        yield Server(url, process.pid, time.perf_counter() - start)
    finally:
        process.send_signal(signal.SIGTERM)
        # Reads what the server prints last, and closes the pipe.
        process.communicate()
