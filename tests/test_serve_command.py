"""stem-serve as a command: what it refuses before it serves, in a sentence and with status 2."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from stem_torchrec.runtime.errors import UserError
from stem_torchrec.server.gate import Gate
from stem_torchrec.server.listening import bound_socket, start_listening
from stem_torchrec.server.metrics import Metrics
from stem_torchrec.server.options import ServeConfig
from stem_torchrec.server.run_server import read_token, run_server

ROOT = Path(__file__).parent.parent
HIDDEN = """
import sys
from importlib.machinery import PathFinder

class WithoutUvicorn(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == "uvicorn" else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutUvicorn
sys.argv = ["serve.py", "--bundle", "/tmp"]
from stem_torchrec.serve import main
main()
"""


def test_without_its_packages_the_command_names_the_extra() -> None:
    result = subprocess.run(
        [sys.executable, "-c", HIDDEN], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: stem-serve needs uvicorn, which is not installed; run: pip install 'stem_torchrec[serve]' "
        "[STEM-SERVER]\n"
    )


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STEM_SERVE_TOKEN", raising=False)
    assert read_token(None) is None
    file = tmp_path / "token"
    file.write_text("0123456789abcdef\n")
    assert read_token(str(file)) == "0123456789abcdef"
    monkeypatch.setenv("STEM_SERVE_TOKEN", "fedcba9876543210")
    assert read_token(None) == "fedcba9876543210"
    assert read_token(str(file)) == "0123456789abcdef"
    for text in ("", "short", "0123456789 abcdef", "0123456789abcdé\x80"):
        file.write_text(text)
        with pytest.raises(UserError, match="has no token of 16 or more"):
            read_token(str(file))


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--bundle is missing"):
        run_server(ServeConfig())
    with pytest.raises(UserError, match=r"is no bundle, as it has no manifest\.json"):
        run_server(ServeConfig(bundle=str(tmp_path), http=0))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"--http {port} cannot be listened at \(Address already in use\)"):
            run_server(ServeConfig(bundle=str(tmp_path), http=port))
    with pytest.raises(UserError, match="cannot be listened at"):
        run_server(ServeConfig(bundle=str(tmp_path), host="256.0.0.1", http=0))


def test_of_two_servers_that_bind_one_port_the_second_is_refused_when_it_listens() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bound_socket("127.0.0.1", port) as second:
            start_listening(first, "127.0.0.1", port)
            with pytest.raises(UserError, match=rf"--http {port} cannot be listened at \(Address already in use\)"):
                start_listening(second, "127.0.0.1", port)


def test_a_request_that_the_end_cuts_off_is_counted() -> None:
    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def cut_off() -> int:
        gate = Gate(endless, Metrics(lambda: 0, lambda: 0), token=None, seconds=10)
        request = asyncio.create_task(gate({"type": "http", "path": "/score"}, None, None))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        return gate.cut_off

    assert asyncio.run(cut_off()) == 1
