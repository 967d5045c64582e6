"""The Hub of the tests, driven by the real client."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Hub

CARD = b"---\nlicense: apache-2.0\n---\n# Tiny\n"
WEIGHTS = bytes(range(256)) * 4096
NAME = "user/tiny"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with Hub() as hub:
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo(NAME, private=True)
    return api


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card, 1 MiB of weights, and a file in a folder."""
    folder = tmp_path / "folder"
    (folder / "adapter").mkdir(parents=True)
    (folder / "README.md").write_bytes(CARD)
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "adapter/config.json").write_bytes(b"{}")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub: Hub) -> dict[str, bytes]:
    """The files, without the .gitattributes that every repository begins with."""
    return {path: data for path, data in hub.repos[NAME].files.items() if path != ".gitattributes"}


def test_unchanged_files_are_not_published_again(hub: Hub, api: HfApi, folder: Path) -> None:
    """Unchanged files are not sent again, and make no commit; a changed one goes alone."""
    first = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="first")
    assert published(hub) == contents(folder)
    assert hub.received == len(WEIGHTS)

    second = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="second")
    assert second.oid == first.oid == hub.repos[NAME].head.oid
    assert hub.received == len(WEIGHTS)

    (folder / "README.md").write_bytes(CARD + b"More.\n")
    (folder / "plot.png").write_bytes(b"png")
    api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="more")
    assert published(hub) == contents(folder)
    assert hub.received == len(WEIGHTS) + 3
    assert [commit.message for commit in hub.repos[NAME].commits] == ["initial commit", "first", "more"]


def test_another_process_needs_only_the_environment(hub: Hub, folder: Path) -> None:
    code = f"""
from huggingface_hub import create_repo, upload_folder
create_repo({NAME!r})
upload_folder(repo_id={NAME!r}, folder_path={str(folder)!r})
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | hub.env, check=True, timeout=120)
    assert published(hub) == contents(folder)
    assert not hub.repos[NAME].private


def test_download_equals_upload(hub: Hub, api: HfApi, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert contents(Path(api.snapshot_download(NAME, local_dir=tmp_path / "back"))).items() >= contents(folder).items()
    assert Path(api.hf_hub_download(NAME, "README.md", cache_dir=tmp_path / "cache")).read_bytes() == CARD

    weights, config = api.get_paths_info(NAME, ["model.safetensors", "adapter/config.json", "nothing"])
    assert (weights.size, weights.lfs.size, config.lfs) == (len(WEIGHTS), len(WEIGHTS), None)
    assert config.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # printf '{}' | git hash-object --stdin
    top = [entry.path for entry in api.list_repo_tree(NAME)]
    assert top == [".gitattributes", "README.md", "adapter", "model.safetensors"]
    assert [entry.path for entry in api.list_repo_tree(NAME, "adapter")] == ["adapter/config.json"]
    assert api.file_exists(NAME, "README.md") and not api.file_exists(NAME, "nothing")
    info = api.model_info(NAME, files_metadata=True)
    assert {each.rfilename: each.size for each in info.siblings}["model.safetensors"] == len(WEIGHTS)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="nothing")


def test_large_object_is_sent_in_parts(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.multipart_size = 300_000
    hub.fail("PUT /storage/", 500)
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert published(hub) == contents(folder)
    parts = [path[-2:] for method, path in hub.requests if method == "PUT"]
    assert parts == ["/1", "/1", "/2", "/3", "/4"]


def test_token_is_required(hub: Hub, api: HfApi) -> None:
    assert api.whoami()["name"] == "user"
    for token in ("hf_wrong", False):
        with pytest.raises(HfHubHTTPError) as refused:
            HfApi(endpoint=hub.url, token=token).create_repo("user/other")
        assert refused.value.response.status_code == 401
    with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
        HfApi(endpoint=hub.url, token="hf_wrong").upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME)
    assert not isinstance(refused.value, RepositoryNotFoundError)
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(NAME)
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        api.create_repo("another/tiny")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    assert api.repo_exists(NAME) and not api.repo_exists("user/nothing")
    assert list(hub.repos) == [NAME]


def test_card_without_a_licence_is_refused_before_anything_is_sent(hub: Hub, api: HfApi, folder: Path) -> None:
    for card in ("# Tiny\n", "---\nlanguage: en\n---\n", "---\nlicense: [\n---\n"):
        (folder / "README.md").write_text(card)
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            api.upload_folder(repo_id=NAME, folder_path=folder)
    assert (published(hub), hub.received) == ({}, 0)


@pytest.mark.parametrize("fault", [504, 429, "drop", "cut", "lost"])
def test_object_is_sent_again_after_a_fault(hub: Hub, api: HfApi, folder: Path, fault: int | str) -> None:
    hub.fail("PUT /storage/", fault)
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert published(hub) == contents(folder)
    assert [method for method, _ in hub.requests].count("PUT") == 2


@pytest.mark.parametrize(("fault", "error"), [(504, HfHubHTTPError), ("drop", HTTPError), ("cut", HTTPError)])
def test_failed_commit_leaves_the_repository_unchanged(
    hub: Hub, api: HfApi, folder: Path, fault: int | str, error: type[Exception]
) -> None:
    api.upload_folder(repo_id=NAME, folder_path=folder)
    before = hub.repos[NAME].head
    (folder / "README.md").write_bytes(CARD + b"More.\n")
    hub.fail("/commit/main", fault)
    with pytest.raises(error):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    assert hub.repos[NAME].head is before
    api.upload_folder(repo_id=NAME, folder_path=folder)
    assert published(hub) == contents(folder)


def test_commit_whose_reply_is_lost_is_not_repeated(hub: Hub, api: HfApi, folder: Path) -> None:
    hub.fail("/commit/main", "lost")
    with pytest.raises(HTTPError):
        api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="first")
    assert published(hub) == contents(folder)
    api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="second")
    assert [commit.message for commit in hub.repos[NAME].commits] == ["initial commit", "first"]


def test_commit_is_atomic(hub: Hub, api: HfApi) -> None:
    api.upload_file(path_or_fileobj=b"old", path_in_repo="notes/old.txt", repo_id=NAME)
    before = hub.repos[NAME].head

    def commit(*operations: CommitOperationAdd | CommitOperationDelete, parent: str | None = None) -> None:
        api.create_commit(NAME, list(operations), commit_message="more", parent_commit=parent)

    new = CommitOperationAdd("new.txt", b"new")
    never_sent = CommitOperationAdd("model.safetensors", WEIGHTS)
    never_sent._upload_mode, never_sent._is_uploaded = "lfs", True
    with pytest.raises(BadRequestError, match="does not exist"):
        commit(new, never_sent)
    with pytest.raises(EntryNotFoundError):
        commit(new, CommitOperationDelete("nothing.txt"))
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(new, parent="0" * 40)
    assert hub.repos[NAME].head is before and published(hub) == {"notes/old.txt": b"old"}

    commit(new, CommitOperationDelete("notes/"), parent=before.oid)
    assert published(hub) == {"new.txt": b"new"}
