"""A server of the S3 protocol on this machine, for tests of runs in an object store."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import s3fs
from moto.server import ThreadedMotoServer

from stem_torchrec.runtime.store_path import StorePath

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[s3fs.S3FileSystem]:
    """An empty bucket, which this process and those that it starts reach as s3://bucket meanwhile."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    environment = {
        **{"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"},
        **{"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"},
    }
    try:
        with mock.patch.dict(os.environ, environment):
            s3fs.S3FileSystem.clear_instance_cache()
            store = s3fs.S3FileSystem(use_listings_cache=False)
            store.mkdir(BUCKET)
            yield store
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def download(store: s3fs.S3FileSystem, url: str, folder: Path) -> Path:
    """Copies a folder of the store to a new local one."""
    store.get(f"{url}/", f"{folder}/", recursive=True)
    return folder


def text_of(url: str) -> str:
    """The text of a file, for a child process."""
    return StorePath(url).read_text()
