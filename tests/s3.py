"""A real S3 server on this machine, and a connection to it that can be dropped."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import fsspec
import pytest

from model.ports import free_port

BUCKET = "koda-checkpoints"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Iterator[str]:
    """Start a server that this process's AWS variables point to; returns its address."""
    port = free_port()
    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environment
    )
    address = f"http://127.0.0.1:{port}"
    point_to(monkeypatch, address)
    try:
        deadline = time.monotonic() + 120
        while True:
            with suppress(OSError):
                urllib.request.urlopen(f"{address}/moto-api/")
                break
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


def point_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Have S3 be at this address, by the variables that AWS's own library reads."""
    variables = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}
    for name, value in (variables | {"DEFAULT_REGION": "us-east-1"}).items():
        monkeypatch.setenv(f"AWS_{name}", value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()


class Line:
    """A connection between `self.address` and a server, which is cut after `limit` bytes where that is set."""

    def __init__(self, server: str):
        self.target, self.limit, self.cuts = int(server.rpartition(":")[2]), 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                threading.Thread(target=self._forward, args=(client, server), daemon=True).start()
                threading.Thread(target=self._forward, args=(server, client), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with suppress(OSError), closing(source), closing(target):
            while data := source.recv(4096):
                passed += len(data)
                if self.limit and passed > self.limit:
                    self.cuts += 1
                    for end in (source, target):
                        end.shutdown(socket.SHUT_RDWR)
                    return
                target.sendall(data)
