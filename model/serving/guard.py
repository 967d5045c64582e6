"""Who may use the server: on this machine, its own programs and pages; over a network, who has the key."""

import hmac
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from model.serving.openai_api import ApiError


def is_loopback(host: str) -> bool:
    """Is this a name or an address by which a machine calls itself?"""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Requires the key for the API, if there is one; it is ASCII, as headers are.

    On a `local` server, pages of other sites are refused too: by Origin, which browsers send with every POST to
    another site; and by Host, for a site can have its own name resolve to this machine (DNS rebinding), and then its
    pages seem to be the server's own.
    """

    def __init__(self, app: ASGIApp, key: str, local: bool):
        self.app, self.key, self.local = app, key.encode("ascii"), local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope), scope["path"])
            except ApiError as error:
                headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
                await JSONResponse(error.body, error.status, headers)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.local and not is_loopback(_name(host)):
            raise ApiError(
                403, f"This server is for its own machine, and not for the host {host!r}.", code="wrong_host"
            )
        if self.local and origin is not None and urlsplit(origin).netloc != host:
            raise ApiError(403, f"Pages of {origin} may not use this server.", code="wrong_origin")
        if self.key and path.startswith("/v1"):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.encode("latin-1"), self.key):
                raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
