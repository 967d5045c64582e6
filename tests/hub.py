"""The Hugging Face Hub as huggingface_hub 2.4 calls it, on a port of this machine, with faults on demand.

    with Hub() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)  # another process: os.environ | hub.env
        api.create_repo(f"{hub.user}/tiny")
        hub.fail("/commit/main", 504)

Models only, the branch main only, all in memory. Objects go by LFS: huggingface_hub 2.4 uploads by Xet wherever hf_xet
is installed and checks with no server, so the client needs HF_HUB_DISABLE_XET=1 (it is in `hub.env`).
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property, partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import ceil
from typing import Any, Literal, NoReturn, Self
from urllib.parse import parse_qs, unquote, urlsplit

import yaml  # huggingface_hub needs it as well

LFS = ("*.safetensors", "*.gguf", "*.png", "*.npz", "*tfevents*")
LFS_SIZE = 10 * 10**6
REPO, REVISION, OID = "(?P<name>[^/]+/[^/]+)", "(?P<revision>[^/]+)", "(?P<oid>[0-9a-f]{64})"

Json = dict[str, Any]
Fault = int | Literal["drop", "cut", "lost"]


@dataclass(frozen=True)
class Blob:
    """A file of a commit, and whether git has its bytes or a pointer to an LFS object."""

    data: bytes
    lfs: bool

    @cached_property
    def about(self) -> Json:
        """As the Hub describes it: `oid` is the `git hash-object` of what git has."""
        sha256, size = hashlib.sha256(self.data).hexdigest(), len(self.data)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        stored = pointer if self.lfs else self.data
        oid = hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()
        lfs = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": len(pointer)}
        return {"oid": oid, "blobId": oid, "size": size, **({"lfs": lfs} if self.lfs else {})}

    @property
    def etag(self) -> str:
        """What a client compares with its own file: an object's sha256, any other file's oid."""
        return (self.about["lfs"] if self.lfs else self.about)["oid"]


@dataclass(frozen=True)
class Commit:
    """What the repository was after a commit: each path and its blob."""

    message: str
    tree: dict[str, Blob]
    oid: str = field(default_factory=partial(secrets.token_hex, 20))


@dataclass
class Repo:
    """A model's repository: the commits of its main branch, oldest first, and its LFS objects by sha256."""

    private: bool
    commits: list[Commit]
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.head.tree.items()}

    def at(self, revision: str) -> Commit:
        matches = [commit for commit in self.commits if revision in ("main", commit.oid)]
        return matches[-1] if matches else refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Hub:
    """A Hub with one user, who has one token, to write with."""

    def __init__(self, user: str = "user", multipart_size: int = 10**9) -> None:
        self.user = user
        self.token = f"hf_test_{secrets.token_hex(8)}"
        self.multipart_size = multipart_size  # a larger object is sent in parts of this size
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []  # method and path of each, those that met a fault included
        self.received = 0  # bytes of LFS objects that were taken
        self.parts: dict[tuple[str, str], dict[int, bytes]] = {}
        self.lock = threading.Lock()
        self._faults: list[tuple[str, Fault]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self._server.daemon_threads = True  # a client's idle connection blocks nobody
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.env = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HUB_DISABLE_XET": "1"}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, match: str, how: Fault, times: int = 1) -> None:
        """The next `times` requests whose "METHOD path" contains `match` go wrong.

        A number is the status of the answer. "drop" reads the request and hangs up, "cut" hangs up in the middle of
        the request, "lost" does what was requested and hangs up instead of replying.
        """
        with self.lock:
            self._faults += [(match, how)] * times

    def note(self, method: str, path: str) -> Fault | None:
        """A request came in: what is to go wrong with it."""
        with self.lock:
            self.requests.append((method, path))
            for at, (match, how) in enumerate(self._faults):
                if match in f"{method} {path}":
                    del self._faults[at]
                    return how
        return None


class Refused(Exception):
    """An answer other than 200: status, body, headers."""


def refuse(status: int, body: str | bytes | Json, code: str | None = None, **headers: str) -> NoReturn:
    """A message is worded as the Hub does it: the client makes its exception classes of the code."""
    if isinstance(body, str):
        headers |= {"X-Error-Message": body, **({"X-Error-Code": code} if code else {})}
        body = {"error": body}
    raise Refused(status, body, headers)


ENDPOINTS: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []


def endpoint(method: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return lambda function: ENDPOINTS.append((method, re.compile(path), function)) or function


class Handler(BaseHTTPRequestHandler):
    """A request and its answer. Each endpoint names what calls it in huggingface_hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for headers and body: a second would wait for the first to be acknowledged

    def serve(self) -> None:
        url, size = urlsplit(self.path), int(self.headers["Content-Length"] or 0)
        fault = self.hub.note(self.command, url.path)
        body = self.rfile.read(size // 2 if fault == "cut" else size)
        if fault in ("drop", "cut") or len(body) < size:
            self.close_connection = True
            return
        self.body, self.query = body, {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.sent: dict[str, str] = {}
        try:
            status, answer = 200, self.answer(url.path, fault)
        except Refused as refused:
            status, answer, self.sent = refused.args
        if fault == "lost":
            self.close_connection = True
            return
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **self.sent, "Content-Length": len(content)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: object) -> None: ...

    def answer(self, target: str, fault: Fault | None) -> Any:
        if fault in (502, 503, 504):  # load balancers fail in HTML, the Hub in JSON
            refuse(fault, b"<html></html>", **{"Content-Type": "text/html"})
        if isinstance(fault, int):
            refuse(fault, HTTPStatus(fault).phrase, **({"Retry-After": "1"} if fault == 429 else {}))
        if self.headers["Authorization"] not in (None, f"Bearer {self.hub.token}"):
            refuse(401, "Invalid credentials in Authorization header")
        for method, path, function in ENDPOINTS:
            if method == self.command.replace("HEAD", "GET") and (match := path.fullmatch(target)):
                with self.hub.lock:
                    return function(self, **{k: unquote(v) for k, v in match.groupdict().items() if v is not None})
        refuse(404, "Sorry, we can't find the page you are looking for.")

    @property
    def json(self) -> Json:
        return json.loads(self.body)

    def user(self, code: str | None = None) -> str:
        """Whose token came with the request."""
        return self.hub.user if self.headers["Authorization"] else refuse(401, "Invalid username or password.", code)

    def repo(self, name: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get(name)
        if write or repo is None or repo.private:
            # The client takes a plain 401 for RepoNotFound as well, but knows a Hub by its https:// only.
            user = self.user("RepoNotFound")
            if write and name.split("/")[0] != user:
                refuse(403, f"{user} has no rights to write to {name}")
        return repo or refuse(404, "Repository not found", "RepoNotFound")

    @endpoint("GET", "/api/whoami-v2")
    def whoami(self) -> Json:
        """HfApi.whoami"""
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "id": "0", "name": self.user(), "orgs": [], "auth": token}

    @endpoint("POST", "/api/repos/create")
    def create_repo(self) -> Json:
        """HfApi.create_repo, which reads the address from the 409 too when `exist_ok` is set"""
        user, request = self.user(), self.json
        name = f"{request.get('organization') or user}/{request['name']}"
        if not name.startswith(f"{user}/"):
            refuse(403, f"{user} has no rights to create {name}")
        created = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repos:
            refuse(409, {"error": "You already created this model repo", **created})
        attributes = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS)
        first = Commit("initial commit", {".gitattributes": Blob(attributes.encode(), lfs=False)})
        self.hub.repos[name] = Repo(request.get("visibility") == "private", [first])
        return created

    @endpoint("GET", f"/api/models/{REPO}(?:/revision/{REVISION})?")
    def model_info(self, name: str, revision: str = "main") -> Json:
        """HfApi.model_info, and with it repo_info, repo_exists, revision_exists and snapshot_download"""
        repo = self.repo(name)
        commit = repo.at(revision)
        blobs = self.query.get("blobs") == "true"
        siblings = [{"rfilename": path, **(blob.about if blobs else {})} for path, blob in sorted(commit.tree.items())]
        return {"id": name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": []}

    @endpoint("GET", f"/api/models/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?")
    def tree(self, name: str, revision: str, path: str = "") -> list[Json]:
        """HfApi.list_repo_tree, and with it list_repo_files, upload_folder(delete_patterns=…) and snapshot_download"""
        folder, deep = f"{path}/" if path else "", self.query.get("recursive") == "true"
        entries = listing(self.repo(name).at(revision).tree)
        below = [file for file in entries.values() if file["path"].startswith(folder)]
        if path and not below:
            refuse(404, f"{path} does not exist on {revision}", "EntryNotFound")
        return [file for file in below if deep or "/" not in file["path"][len(folder) :]]

    @endpoint("POST", f"/api/models/{REPO}/paths-info/{REVISION}")
    def paths_info(self, name: str, revision: str) -> list[Json]:
        """HfApi.get_paths_info, which sends a form; what is not there is left out"""
        entries = listing(self.repo(name).at(revision).tree)
        return [entries[path] for path in parse_qs(self.body.decode())["paths"] if path in entries]

    @endpoint("POST", "/api/validate-yaml")
    def validate_yaml(self) -> Json:
        """HfApi.upload_folder and create_commit before a README.md; RepoCard.validate, without a token and in text"""
        head = re.match(r"---\r?\n(.*?)\r?\n---", self.json["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(head[1]) if head else {}
            wrong = "" if isinstance(metadata, dict) and metadata.get("license") else '"license" is required'
        except yaml.YAMLError as error:
            wrong = str(error)
        if wrong and self.headers["Accept"] == "text/plain":
            refuse(400, f"- Error: {wrong}".encode(), **{"Content-Type": "text/plain"})
        if wrong:
            refuse(400, {"errors": [{"message": wrong}], "warnings": []})
        return {"errors": [], "warnings": []}

    @endpoint("POST", f"/api/models/{REPO}/preupload/{REVISION}")
    def preupload(self, name: str, revision: str) -> Json:
        """_commit_api._fetch_upload_modes; the client takes a file for unchanged if it has this `oid`"""
        there, files = self.repo(name, write=True).at(revision).tree, []
        for path, size in ((file["path"], file["size"]) for file in self.json["files"]):
            lfs = size > LFS_SIZE or any(fnmatch(path, pattern) for pattern in LFS)
            files.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False})
            if blob := there.get(path):
                files[-1]["oid"] = blob.etag
        return {"files": files}

    @endpoint("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def lfs_batch(self, name: str) -> Json:
        """lfs.post_lfs_batch_info: where to send each object, if it is not here"""
        objects, repo, hub = self.json["objects"], self.repo(name, write=True), self.hub
        for missing in (each for each in objects if each["oid"] not in repo.objects):
            storage = f"{hub.url}/storage/{name}/{missing['oid']}"
            upload: Json = {"href": storage}
            if missing["size"] > hub.multipart_size:
                numbers = range(1, ceil(missing["size"] / hub.multipart_size) + 1)
                upload["href"] = f"{hub.url}/api/complete_multipart?name={name}"
                upload["header"] = {
                    "chunk_size": str(hub.multipart_size),
                    **{str(n): f"{storage}/{n}" for n in numbers},
                }
            missing["actions"] = {"upload": upload, "verify": {"href": f"{hub.url}/{name}.git/info/lfs/verify"}}
        return {"transfer": "basic", "objects": objects}

    @endpoint("PUT", rf"/storage/{REPO}/{OID}(?:/(?P<part>\d+))?")
    def put_object(self, name: str, oid: str, part: str | None = None) -> bytes:
        """lfs._upload_single_part, lfs._upload_parts_iteratively: as to any storage, without the token"""
        if part is None:
            self.store(name, oid, self.body)
        else:
            self.hub.parts.setdefault((name, oid), {})[int(part)] = self.body
        self.hub.received += len(self.body)
        self.sent["ETag"] = f'"{part or oid}"'
        return b""

    @endpoint("POST", "/api/complete_multipart")
    def complete_multipart(self) -> Json:
        """lfs._upload_multi_part, after the last part"""
        name, oid = self.query["name"], self.json["oid"]
        parts = self.hub.parts.get((name, oid), {})
        if [part["etag"] for part in self.json["parts"]] != [f'"{number}"' for number in sorted(parts)]:
            refuse(400, "InvalidPart")
        self.store(name, oid, b"".join(parts[number] for number in sorted(parts)))
        return {"success": True}

    def store(self, name: str, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            refuse(400, "BadDigest")
        self.hub.repos[name].objects[oid] = data

    @endpoint("POST", rf"/{REPO}\.git/info/lfs/verify")
    def verify(self, name: str) -> Json:
        """lfs.lfs_upload, after an object"""
        data = self.repo(name, write=True).objects.get(self.json["oid"])
        return {} if data is not None and len(data) == self.json["size"] else refuse(404, "Object not found")

    @endpoint("POST", f"/api/models/{REPO}/commit/main")
    def create_commit(self, name: str) -> Json:
        """_commit_api._send_commit: every operation or none"""
        repo = self.repo(name, write=True)
        tree, header = dict(repo.head.tree), {}
        for operation in map(json.loads, self.body.splitlines()):
            value, path = operation["value"], operation["value"].get("path", "")
            match operation["key"]:
                case "header":
                    header = value
                case "file":
                    tree[path] = Blob(base64.b64decode(value["content"]), lfs=False)
                case "lfsFile":
                    if value["oid"] not in repo.objects:
                        refuse(400, f"LFS pointer pointed to a file that does not exist: {path}")
                    tree[path] = Blob(repo.objects[value["oid"]], lfs=True)
                case "deletedFile":
                    if tree.pop(path, None) is None:
                        refuse(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                case "deletedFolder":
                    tree = {each: blob for each, blob in tree.items() if not each.startswith(path.rstrip("/") + "/")}
        if header.get("parentCommit", repo.head.oid) != repo.head.oid:
            refuse(412, "A commit has happened since. Please refresh and try again.")
        repo.commits.append(commit := Commit(header["summary"], tree))
        return {"success": True, "commitOid": commit.oid, "commitUrl": f"{self.hub.url}/{name}/commit/{commit.oid}"}

    @endpoint("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, name: str, revision: str, path: str) -> bytes:
        """hf_hub_download and snapshot_download; with HEAD file_exists and get_hf_file_metadata"""
        commit = self.repo(name).at(revision)
        self.sent = {"X-Repo-Commit": commit.oid, "Content-Type": "application/octet-stream"}
        blob = commit.tree.get(path) or refuse(404, "Entry not found", "EntryNotFound", **self.sent)
        if blob.lfs:
            self.sent |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
        self.sent["ETag"] = f'"{blob.etag}"'
        return blob.data


def listing(tree: dict[str, Blob]) -> dict[str, Json]:
    """Every file and folder as the Hub describes it, by path."""
    entries: dict[str, Json] = {}
    for path, blob in sorted(tree.items()):
        for parent in (path[: slash.start()] for slash in re.finditer("/", path)):
            oid = hashlib.sha1(parent.encode()).hexdigest()
            entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
        entries[path] = {"type": "file", "path": path, **blob.about}
    return entries
