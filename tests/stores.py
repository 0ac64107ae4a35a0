"""A server of the S3 protocol on this machine, for tests of runs in an object store."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from unittest import mock
from urllib.request import Request, urlopen

import s3fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from stem_torchrec.runtime.store_path import StorePath

BUCKET = "bucket"


class S3Server:
    """A store with an empty bucket."""

    def __init__(self) -> None:
        self.refuses = False
        """Whether the store answers every request with status 503, as one does that has too much to do."""
        self._answer = DomainDispatcherApplication(create_backend_app)

    def __call__(self, request: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answers a request of the WSGI protocol."""
        if self.refuses:
            start_response("503 Slow Down", [("Content-Length", "0")])
            return []
        return self._answer(request, start_response)


@contextmanager
def s3_server() -> Iterator[tuple[S3Server, s3fs.S3FileSystem]]:
    """A store and a client of it; this process and those that it starts reach its bucket as s3://bucket meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    answers = S3Server()
    server = make_server("127.0.0.1", 0, answers, threaded=True)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    environment = {
        **{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"},
        **{"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}", "AWS_EC2_METADATA_DISABLED": "true"},
    }
    try:
        with mock.patch.dict(os.environ, environment):
            s3fs.S3FileSystem.clear_instance_cache()
            store = s3fs.S3FileSystem(use_listings_cache=False)
            # moto keeps buckets for the whole process, also those of another test's server.
            urlopen(Request(f"http://127.0.0.1:{server.port}/moto-api/reset", method="POST")).close()
            store.mkdir(BUCKET)
            yield answers, store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.shutdown()
        thread.join()
        server.server_close()


def download(store: s3fs.S3FileSystem, url: str, folder: Path) -> Path:
    """Copies a folder of the store to a new local one."""
    store.get(f"{url}/", f"{folder}/", recursive=True)
    return folder


def text_of(url: str) -> str:
    """The text of a file, for a child process."""
    return StorePath(url).read_text()
