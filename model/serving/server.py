"""An application on a socket, until Ctrl-C."""

import contextlib
import errno
import logging
import socket

import uvicorn
from starlette.types import ASGIApp

from model.errors import KodaError


def listen(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to; who does so before `serve` waits. Port 0: any that is free.

    Raises KodaError for a port that is taken, and for an address that is not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OverflowError:
        raise KodaError(f"--port {port}: a port is a number from 0 to 65535.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise KodaError(f"port {port} of {host} is taken by another program. Choose another with --port.") from None
        raise KodaError(f"--host {host} --port {port}: {error.strerror or error}.") from None


def address(listening: socket.socket) -> str:
    """The URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Answers requests until it is interrupted, which also ends answers that are not complete."""

    def __init__(self, app: ASGIApp, line: str):
        """`line`: what is printed when it is ready."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the application reports what goes wrong in it
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, server_header=False, lifespan="off", timeout_graceful_shutdown=0
            )
        )
        self.line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.line, flush=True)


def serve(app: ASGIApp, listening: socket.socket, line: str) -> None:
    """Print the line, and answer requests until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        Server(app, line).run([listening])
