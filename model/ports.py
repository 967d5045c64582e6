"""Ports of this machine."""

import socket


def free_port() -> int:
    """A port of the loopback address that nobody listens at, for whoever takes it next."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
