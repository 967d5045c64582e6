"""Repositories on the Hugging Face Hub: what would change there, and one commit that changes it."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from prefect import task

from model.errors import KodaError
from model.files import CHECKSUMS, checksums, sha256
from tasks import retries
from tasks.progress import log_line

SECRET = "hf-token"  # the name of a Prefect Secret block that may contain the token
PATIENCE = 15.0  # seconds for the first answer of the Hub
SHA256 = 64  # letters of such a hash; the Hub gives it for large files, and git's for small ones
LISTED = 12  # files that are printed one by one


class Change(NamedTuple):
    """A file of a repository, and what becomes of it."""

    sign: str  # + new, ~ changed, - removed, = as it is
    path: str
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.sign} {self.path}  {self.size:,} bytes"


def token() -> str:
    """The token for the Hub: HF_TOKEN, or the Secret block. Raises KodaError where there is none."""
    if token_ := os.environ.get("HF_TOKEN", "").strip():
        return _sendable(token_, "HF_TOKEN")
    from prefect.blocks.system import Secret

    try:
        token_ = str(Secret.load(SECRET).get()).strip()  # type: ignore[union-attr]  # typed as async
    except ValueError:
        raise KodaError(
            "publishing on the Hub needs a token with write access: as HF_TOKEN in the environment, or in a Prefect "
            f"Secret block named {SECRET!r}."
        ) from None
    return _sendable(token_, f"the Prefect Secret block {SECRET!r}")


def _sendable(token_: str, where: str) -> str:
    if not re.fullmatch("[!-~]+", token_):  # what an HTTP header can have; the text itself is a secret
        raise KodaError(f"{where} is not a token of the Hub: those are ASCII letters, digits and signs.")
    return token_


def check(repository: str) -> None:
    """Raise KodaError where the Hub does not respond, or refuses the token: in one request, before anything is done."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=token())
    with refusals(repository):
        try:
            api.repo_info(repository, timeout=PATIENCE)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403):
                raise
            # Of a repository that does not exist yet, or of a server that may recover: the upload tries again.
        except Exception as error:
            raise KodaError(f"the Hub does not respond: {type(error).__name__}: {error}") from None


def refuse_links(folder: Path) -> None:
    """Raise KodaError where a folder contains a link, which could lead anywhere."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise KodaError(f"{path} is no plain file; only what the stage itself wrote is published.")


def changes(folder: Path, there: dict[str, str], ours: set[str]) -> list[Change]:
    """What publishing `folder` does to a place that has files with these hashes: of the folder, what its CHECKSUMS
    lists, and nothing that came into it since; nothing where there is no such folder.

    `ours` are those of them that an earlier publishing put there: what it no longer has is removed.
    """
    listed = folder / CHECKSUMS
    files = sorted([*checksums(listed), CHECKSUMS]) if listed.is_file() else []
    changed = []
    for path in files:
        size, known = (folder / path).stat().st_size, there.get(path)
        if known is None:  # nothing to compare a hash with
            sign = "+"
        else:
            sign = "=" if known == (sha256 if len(known) == SHA256 else git_hash)(folder / path) else "~"
        changed.append(Change(sign, path, size))
    return changed + [Change("-", path, 0) for path in sorted((ours & there.keys()) - set(files))]


def git_hash(path: Path) -> str:
    """The name that git, and so the Hub, gives a small file: the SHA-1 of its length and its bytes."""
    from huggingface_hub.utils.sha import git_hash as of

    return of(path.read_bytes())


def remote(api: Any, repository: str) -> tuple[dict[str, str], set[str]]:
    """The files of a repository with their hashes, and which of them an earlier publishing put there; nothing for a
    repository that does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        entries = list(api.list_repo_tree(repository, recursive=True))
    except RepositoryNotFoundError:
        return {}, set()
    there = {e.path: e.lfs.sha256 if e.lfs else e.blob_id for e in entries if hasattr(e, "blob_id")}
    if CHECKSUMS not in there:
        return there, set()
    with tempfile.TemporaryDirectory() as scratch:
        listed = Path(api.hf_hub_download(repository, CHECKSUMS, local_dir=scratch))
        try:
            return there, {*checksums(listed), CHECKSUMS}
        except KodaError:  # somebody else's, or damaged: what is not known to be ours is not removed
            return there, set()


@contextmanager
def refusals(repository: str) -> Iterator[None]:
    """Raises KodaError where the Hub refuses the token: no retry helps against that."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise KodaError(f"the Hub refused the token for {repository}: it needs write access there.") from None
        raise


def change_lines(place: str, planned: list[Change]) -> Iterator[str]:
    """The changes as a person reads them."""
    moving = [change for change in planned if change.sign != "="]
    new, changed, removed = ([change.sign for change in moving].count(sign) for sign in "+~-")
    size = sum(change.size for change in moving)
    same = len(planned) - len(moving)
    yield f"{place}: {new} new, {changed} changed, {removed} removed ({size:,} bytes), {same} as they are"
    yield from (f"  {change}" for change in moving[:LISTED])
    if len(moving) > LISTED:
        yield f"  … and {len(moving) - LISTED} more"


@task(**retries.UPLOAD)
def upload(repository: str, folder: Path, private: bool) -> str:
    """Make `repository` what `folder` is, in one commit; returns the commit that the repository is then at.

    Large files go before it: one that fails leaves the version before whole, and what arrived is not sent again.
    Raises KodaError where the Hub refuses the token or the card.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard

    api = HfApi(token=token())
    with refusals(repository):
        changed = changes(folder, *remote(api, repository))
        for line in change_lines(repository, changed):
            log_line(f"publish    {line}")
        operations: list[Any] = [
            CommitOperationDelete(change.path)
            if change.sign == "-"
            else CommitOperationAdd(change.path, folder / change.path)
            for change in changed
            if change.sign != "="
        ]
        if not operations:  # the try before may have made the commit, and its answer was lost
            return str(api.repo_info(repository).sha)
        try:  # a commit checks this too, but would leave an empty repository
            ModelCard((folder / "README.md").read_text(encoding="utf-8")).validate()
        except ValueError as error:
            raise KodaError(f"the Hub does not take the card of {repository}: {error}") from None
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.create_commit(repository, operations, commit_message="Publish with Koda").oid)
