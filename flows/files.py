"""Reports and pictures of runs for a browser on this machine: `python -m flows.files PORT`. Nothing else is served."""

import contextlib
import functools
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tasks.run import root

SHOWN = {".html", ".png", ".svg"}
LOOPBACK = "127.0.0.1"  # where the Prefect server is too: whoever reaches that can start runs


class Handler(SimpleHTTPRequestHandler):
    """Files of SHOWN kinds below the folder of all runs, to whoever asks this machine for them by its own name."""

    def translate_path(self, path: str) -> str:
        found = Path(super().translate_path(path))
        parts = found.relative_to(self.directory).parts if found.is_relative_to(self.directory) else (".",)
        asked = self.headers.get("Host", "").partition(":")[0]
        hidden = any(part.startswith(".") for part in parts) or found.suffix not in SHOWN
        return "" if hidden or asked not in (LOOPBACK, "localhost") else str(found)

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
