"""Who may use a server, over real connections."""

import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from model.serving.guard import Guard, is_loopback
from model.serving.server import Server, address, listen


async def _open(_: Request) -> PlainTextResponse:
    return PlainTextResponse("open")


def _served(key: str, local: bool) -> Iterator[str]:
    routes = [Route("/", _open), Route("/v1/models", _open, methods=["GET", "POST"])]
    socket = listen("127.0.0.1", 0)
    where = address(socket)
    server = Server(Starlette(routes=routes, middleware=[Middleware(Guard, key=key, local=local)]), "")
    thread = threading.Thread(target=server.run, args=([socket],))
    thread.start()
    yield where
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def local() -> Iterator[str]:
    yield from _served("", True)


@pytest.fixture(scope="module")
def keyed() -> Iterator[str]:
    yield from _served("secret", False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "LOCALHOST", "[::1]:80", "127.1.2.3:9"])
def test_names_of_this_machine_are_accepted(local: str, host: str) -> None:
    assert httpx.get(local, headers={"Host": host}).text == "open"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "192.168.0.1", "", "[::1"]
)
def test_other_names_are_refused_as_a_page_with_its_own_dns_would_have_them(local: str, host: str) -> None:
    for path in ("/", "/v1/models"):
        response = httpx.get(local + path, headers={"Host": host})
        assert response.status_code == 403 and response.json()["error"]["code"] == "wrong_host"


def test_pages_of_other_sites_are_refused_and_its_own_is_not(local: str) -> None:
    assert httpx.post(f"{local}/v1/models", headers={"Origin": local}).text == "open"
    port = local.rpartition(":")[2]
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{port}", "file://"):
        response = httpx.post(f"{local}/v1/models", headers={"Origin": origin})
        assert response.status_code == 403 and response.json()["error"]["code"] == "wrong_origin"
        assert "access-control-allow-origin" not in response.headers
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{local}/v1/models", headers=preflight).status_code == 403


@pytest.mark.parametrize(
    "given", [None, "secret", "Bearer", "Bearer wrong", "Bearer secre", "Basic secret", "Bearer s\u00e9cret"]
)
def test_api_requires_the_key(keyed: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given.encode()}
    response = httpx.get(f"{keyed}/v1/models", headers=headers)
    assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_key_opens_the_api_by_any_name_and_the_page_needs_none(keyed: str) -> None:
    headers = {"Host": "koda.example", "Authorization": "Bearer secret"}
    assert httpx.get(f"{keyed}/v1/models", headers=headers).text == "open"
    assert httpx.get(keyed, headers={"Host": "koda.example"}).text == "open"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.0.1", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
