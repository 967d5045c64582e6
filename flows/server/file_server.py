"""Serves reports and pictures of runs, and nothing else, to a browser on this machine.

`python -m flows.server.file_server PORT FILE`; its address is written to FILE.
"""

import contextlib
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from model.ports import LOOPBACK
from tasks.runs.paths import root

SHOWN = {".html", ".png", ".svg"}


class Handler(SimpleHTTPRequestHandler):
    """Files of SHOWN kinds below the folder of all runs, for requests to this machine by its own name."""

    def translate_path(self, path: str) -> str:
        target = Path(super().translate_path(path))
        parts = target.relative_to(self.directory).parts if target.is_relative_to(self.directory) else (".",)
        host = self.headers.get("Host", "").partition(":")[0]
        hidden = any(part.startswith(".") for part in parts) or target.suffix not in SHOWN
        return "" if hidden or host not in (LOOPBACK, "localhost") else str(target)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def server(port: int) -> ThreadingHTTPServer:
    """On `port`, or on another where that is taken."""
    handler = functools.partial(Handler, directory=str(root().absolute()))
    with contextlib.suppress(OSError):
        return ThreadingHTTPServer((LOOPBACK, port), handler)
    return ThreadingHTTPServer((LOOPBACK, 0), handler)


if __name__ == "__main__":
    serving = server(int(sys.argv[1]))
    Path(sys.argv[2]).write_text(f"http://{LOOPBACK}:{serving.server_port}")
    with contextlib.suppress(KeyboardInterrupt):
        serving.serve_forever()
