"""The publish stage, on a Hub of the tests: what is uploaded, what a fault leaves there, and what is never uploaded."""

import hashlib
import logging
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prefect
import pytest
from huggingface_hub import HfApi, snapshot_download
from prefect import flow
from prefect.blocks.system import Secret

from flows.cli.main import main
from model.errors import KodaError
from model.export.formats import FORMATS
from model.figures import PublishFigures
from model.files import checksums, read_json, sha256, write_json
from model.ports import free_port
from model.training.records import Event, log_event
from tasks.about import About
from tasks.hub import SECRET, Change, change_lines, upload
from tasks.publish import Publish, lay_out, public, publish
from tasks.runs.record import RECORD, Built, read_built
from tasks.runs.run import Run
from tasks.trackers.mirror import identify
from tests.hub import Fault, Hub
from tests.records import PLACES, READS, WEIGHTS, put, record_exports, write_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, prefect_server: None) -> Path:
    """The folder of a run in which only publish is left to do."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    for name in ("flows.environment.set_environment", "flows.cli.publish.prepare_environment"):
        monkeypatch.setattr(name, lambda *_, **__: None)  # the server is there already
    monkeypatch.setattr("flows.koda.report", lambda run: None)  # it needs a run's other files too
    run = tmp_path / "runs/tiny"
    write_run(run)
    return run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as they are, without the waits between them."""
    monkeypatch.setattr("tasks.hub.upload", upload.with_options(retry_delay_seconds=0))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))


@flow
def publishing(to: str = "user/tiny") -> Built[PublishFigures]:
    """The stage by itself, on what the run `tiny` contains."""
    with Run("tiny") as run:
        inputs = (read_built(run.folder, stage) for stage in READS)
        return publish.build(run, "key", (Publish(to=to), About(), *inputs))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub: Hub, place: str = "user/tiny") -> dict[str, bytes]:
    """The files, without the .gitattributes that every repository begins with."""
    return {path: data for path, data in hub.repos[place].files.items() if path != ".gitattributes"}


def trees(hub: Hub) -> dict[str, int]:
    """Each file of each repository; one that is sent again unchanged then has another number."""
    return {f"{place}/{path}": id(blob) for place, repo in hub.repos.items() for path, blob in repo.head.tree.items()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """Each path that differs: + new, ~ changed, - removed."""
    written = {path: "~" if path in old else "+" for path in new if new[path] != old.get(path)}
    return written | dict.fromkeys(old.keys() - new.keys(), "-")


def test_repositories_contain_what_was_laid_out(hub: Hub, run: Path) -> None:
    """Private, in one commit each, and nothing else: what convert wrote, the card, checksums, lineage and a picture."""
    built = publishing()
    assert hub.repos.keys() == set(PLACES.values())
    for kind, place in PLACES.items():
        repo = hub.repos[place]
        assert repo.private and built.figures.commits[kind] == repo.head.oid
        assert [commit.message for commit in repo.commits] == ["initial commit", "Publish with Koda"]
        assert published(hub, place) == contents(run / "publish" / kind)
        exports = contents(run / "convert" / kind)
        assert published(hub, place).items() >= exports.items()
        added = {"README.md", "CHECKSUMS", "lineage.json", "curve.png"}
        added |= {".eval_results/arc_easy.yaml", ".eval_results/boolq.yaml"} if kind == "hf" else set()
        assert published(hub, place).keys() - exports == added


def test_verify_tells_an_intact_copy_from_a_damaged_one(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publishing()
    for place in PLACES.values():
        copy = Path(snapshot_download(place, local_dir=tmp_path / place, token=hub.token))
        assert main(["verify", str(copy)]) == 0
        files = checksums(copy / "CHECKSUMS")
        assert files.keys() == published(hub, place).keys() - {"CHECKSUMS"}
        for name in files:
            intact = (copy / name).read_bytes()
            for damaged in (bytes([intact[0] ^ 1]) + intact[1:], None):
                put(copy / name, damaged) if damaged else (copy / name).unlink()
                capsys.readouterr()
                assert main(["verify", str(copy)]) == 1
                (error,) = capsys.readouterr().err.splitlines()
                assert error == f"koda: {name}: {'is not what was published' if damaged else 'is missing'}"
            put(copy / name, intact)
        for stray in (".DS_Store", "._README.md", "README.md~"):  # nobody published them, and nothing reads them
            put(copy / stray, b"stray")
        capsys.readouterr()
        assert main(["verify", str(copy)]) == 0
        assert capsys.readouterr().out == f"{copy}: all {len(files)} files are what was published.\n"


@pytest.mark.parametrize("listed", [b"SHA256 (a) = 00\n", b"\xff\xfe\n", f"{'0' * 64}  ../a\n".encode()])
def test_checksums_of_another_form_are_refused_and_claim_no_file(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: bytes
) -> None:
    """`koda verify` refuses them in one line; a publishing does not remove the files beside them in a repository."""
    put(tmp_path / "CHECKSUMS", listed)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/tiny")
    for name in ("a", "CHECKSUMS"):
        api.upload_file(path_or_fileobj=listed, path_in_repo=name, repo_id="user/tiny")
    publishing()
    assert published(hub) == contents(run / "publish/hf") | {"a": listed}
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"koda: {tmp_path}/CHECKSUMS, line 1: not a SHA-256")


def test_only_what_changed_is_sent(hub: Hub, run: Path) -> None:
    publishing()
    before, received = trees(hub), hub.received
    publishing()
    assert differences(before, trees(hub)) == {} and all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert hub.received == received

    put(run / "convert/hf/config.json", b'{"model_type": "llama", "vocab_size": 4096}')
    record_exports(run)
    publishing()
    assert differences(before, trees(hub)) == {"user/tiny/config.json": "~", "user/tiny/CHECKSUMS": "~"}
    assert hub.received == received

    before = trees(hub)
    put(run / "convert/mlx/8bit/model.safetensors", WEIGHTS[:10_000])
    record_exports(run)
    publishing()
    assert differences(before, trees(hub)) == {
        "user/tiny-MLX/8bit/model.safetensors": "~",
        "user/tiny-MLX/CHECKSUMS": "~",
    }
    assert hub.received == received + 10_000


def test_removed_exports_are_removed_and_files_of_others_stay(hub: Hub, run: Path, at_once: None) -> None:
    """Even where the first request for the list of our files fails."""
    publishing()
    theirs = HfApi(endpoint=hub.url, token=hub.token).upload_file
    theirs(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id="user/tiny")
    before = trees(hub)
    (run / "convert/hf/tokenizer.json").unlink()
    record_exports(run)
    hub.fail("HEAD /user/tiny/resolve/main/CHECKSUMS", 400)
    publishing()
    assert differences(before, trees(hub)) == {"user/tiny/tokenizer.json": "-", "user/tiny/CHECKSUMS": "~"}
    assert published(hub) == contents(run / "publish/hf") | {"theirs.txt": b"theirs"}


@pytest.mark.parametrize(
    ("request_", "times"),
    [
        ("POST /api/repos/create", 1),
        (f"PUT /storage/user/tiny/{hashlib.sha256(WEIGHTS).hexdigest()}", 6),  # the client itself tries as often
        ("POST /api/models/user/tiny/commit/main", 1),
    ],
    ids=["create", "object", "commit"],
)
def test_transient_faults_are_retried(hub: Hub, run: Path, at_once: None, request_: str, times: int) -> None:
    """Three in a row, one of each kind."""
    faults: list[Fault] = [429, 504, "drop"]
    for fault in faults:
        hub.fail(request_, fault, times)
    publishing()
    for kind, place in PLACES.items():
        assert published(hub, place) == contents(run / "publish" / kind) and len(hub.repos[place].commits) == 2
    requests = [request for request in map(" ".join, hub.requests) if request.startswith(request_)]
    assert len(requests) == 3 * times + (3 if "create" in request_ else 1)


def test_commit_that_never_succeeds_keeps_the_version_before(hub: Hub, run: Path, at_once: None) -> None:
    """And the files that were uploaded for it are not sent again."""
    publishing()
    before, received = hub.repos["user/tiny"].head, hub.received
    put(run / "convert/hf/model.safetensors", WEIGHTS[::-1])
    record_exports(run)
    hub.fail("/api/models/user/tiny/commit/main", 504, times=6)
    with pytest.raises(KodaError, match=r"user/tiny could not be brought up to date.*504"):
        publishing()
    assert hub.repos["user/tiny"].head is before and hub.received == received + len(WEIGHTS)
    publishing()
    assert published(hub) == contents(run / "publish/hf") and published(hub)["model.safetensors"] == WEIGHTS[::-1]
    assert hub.received == received + len(WEIGHTS)


def test_commit_whose_answer_is_lost_is_still_recorded(hub: Hub, run: Path, at_once: None) -> None:
    """By the next attempt, which has nothing left to do; and by a later publishing."""
    hub.fail("/api/models/user/tiny/commit/main", "lost")
    for _ in range(2):
        commits = publishing().figures.commits
        assert commits == {kind: hub.repos[place].head.oid for kind, place in PLACES.items()}
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_place_that_could_not_be_published_to_is_not_kept_as_a_setting(
    hub: Hub, run: Path, at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: the stage adds no retries to those of the upload, and run.toml is unchanged."""
    commit, before = "/api/models/user/tiny/commit/main", (run / "run.toml").read_text()
    hub.fail(commit, 504, times=6)
    assert main(["publish", "tiny", "--to", "user/tiny"]) == 1
    assert "504" in capsys.readouterr().err
    assert [path for _, path in hub.requests].count(commit) == 6
    assert (run / "run.toml").read_text() == before and 'to = "local"' in before
    assert main(["publish", "tiny", "--to", "user/tiny"]) == 0
    assert 'to = "user/tiny"' in (run / "run.toml").read_text()


@pytest.mark.parametrize(
    ("token", "to", "message"),
    [
        ("hf_wrong", "user/tiny", "refused the token for user/tiny: it needs write access"),
        (None, "another/tiny", "refused the token for another/tiny: it needs write access"),
        ("hf_tökén", "user/tiny", "HF_TOKEN is not a token of the Hub: those are ASCII letters"),
        ("hf_a b", "user/tiny", "HF_TOKEN is not a token of the Hub: those are ASCII letters"),
        ("", "user/tiny", f"as HF_TOKEN in the environment, or in a Prefect Secret block named '{SECRET}'"),
    ],
    ids=["wrong", "of another user", "not ASCII", "two words", "none"],
)
def test_without_a_token_with_write_access_nothing_is_sent(
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    to: str,
    message: str,
) -> None:
    """One line reports what is missing, and nothing is retried."""
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(KodaError, match=re.escape(message)) as refused:
        publishing(to)
    assert "\n" not in str(refused.value)
    assert (hub.repos, hub.received) == ({}, 0)
    assert len(hub.requests) == {"hf_wrong": 1, None: 5}.get(token, 0)
    if token is not None:
        capsys.readouterr()
        assert main(["publish", "tiny", "--to", to, "--dry-run"]) == 1
        assert capsys.readouterr().err == f"koda: {refused.value}\n"


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_hub_that_does_not_respond_is_one_error_before_anything_is_done(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """No server is started, nothing is laid out, and nothing is tried again."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("flows.cli.run.embedded_server", None)
    began = time.monotonic()
    assert main(["publish", "tiny", "--to", "user/tiny", *more]) == 1
    assert time.monotonic() - began < 10
    error = capsys.readouterr().err
    assert error.startswith("koda: the Hub does not respond: ") and error.count("\n") == 1
    assert not (run / "publish").exists()


def test_stage_asks_the_hub_before_it_lays_anything_out(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a run does that a worker starts."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("tasks.publish.lay_out", None)
    with pytest.raises(KodaError, match="the Hub does not respond"):
        publishing()


def test_token_may_be_in_a_secret_block(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    Secret(value=hub.token).save(SECRET)
    try:
        publishing()
    finally:
        Secret.delete(SECRET)
    assert hub.repos.keys() == set(PLACES.values())


def test_token_is_written_nowhere(
    hub: Hub, run: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """With the real command and its wait for a retry: not in the run, its output, the logs or Prefect's database."""
    with caplog.at_level(logging.DEBUG):
        hub.fail("/api/models/user/tiny/commit/main", 504)
        assert main(["publish", "tiny", "--to", "user/tiny"]) == 0
    assert hub.repos.keys() == set(PLACES.values())
    database = Path(prefect.settings.PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2])
    deadline = time.monotonic() + 30
    logged = f"user/tiny-MLX: {len(published(hub, PLACES['mlx']))} new"
    while not containing(logged, database.parent):  # logs are written in batches
        assert time.monotonic() < deadline
        time.sleep(0.1)
    out, err = capfd.readouterr()
    assert "user/tiny-MLX" in out and "504 Gateway" in caplog.text
    assert hub.token not in out + err + caplog.text
    assert containing(hub.token, run.parent, database.parent, prefect.settings.PREFECT_HOME.value()) == []


def containing(text: str, *folders: Path) -> list[Path]:
    """The files below the folders that contain a text."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("target", ["secret.txt", "secrets"])
@pytest.mark.parametrize("to", ["local", "user/tiny"])
def test_link_is_refused(hub: Hub, run: Path, tmp_path: Path, target: str, to: str) -> None:
    """To a file or a folder: it could lead anywhere."""
    put(tmp_path / "secret.txt", b"secret")
    put(tmp_path / "secrets/secret.txt", b"secret")
    (run / "convert/mlx/8bit/link").symlink_to(tmp_path / target)
    with pytest.raises(KodaError, match="link is no plain file"):
        publishing(to)
    assert hub.repos == {} and not (run / "publish").exists()


@pytest.mark.parametrize("to", ["local", "user/tiny"])
def test_dry_run_prints_what_publishing_then_changes(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """The commands, with nothing there; with a new, a changed and a removed file and an export less; and unchanged."""
    command = ["publish", "tiny", "--to", to]
    for turn in range(3):
        if turn == 1:
            put(run / "convert/hf/config.json", b"{}")
            put(run / "convert/hf/new.json", b"new")
            (run / "convert/hf/tokenizer.json").unlink()
            shutil.rmtree(run / "convert/mlx")
            record_exports(run)
            put(run / "publish/hf/theirs.txt", b"a local folder is replaced as a whole")
        before, there, requests = state(run), published_files(hub, run, to), len(hub.requests)
        capsys.readouterr()
        assert main([*command, "--dry-run"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert state(run) == before and published_files(hub, run, to) == there
        assert {method for method, _ in hub.requests[requests:]} <= {"GET", "HEAD"}
        assert main(command) == 0
        now, expected = published_files(hub, run, to), []
        for place in now.keys() | there.keys():
            old, new = there.get(place, {}), now.get(place, {})
            changed = differences(old, new)
            if place == PLACES["mlx"] and turn:
                assert not changed  # an export that the run no longer writes stays there, and is not mentioned
                continue
            counts = [[*changed.values()].count(sign) for sign in "+~-"]
            size, same = sum(len(new.get(path, b"")) for path in changed), len(new.keys() & old.keys()) - counts[1]
            (summary,) = (line for line in printed if line.startswith(f"{place}: "))
            figures = re.findall(r"\d[\d,]*", summary.removeprefix(place))
            assert figures == [f"{figure:,}" for figure in (*counts, size, same)]
            signs = dict.fromkeys(new, "=") | changed
            changes = [Change(sign, path, len(new.get(path, b""))) for path, sign in signs.items()]
            expected += change_lines(place, changes)
        assert sorted(printed) == sorted(expected)
        assert ("  - tokenizer.json  0 bytes" in printed) == ("  + new.json  3 bytes" in printed) == (turn == 1)


def test_exports_of_an_earlier_result_are_not_published(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After `koda run --from sft --until sft`, for instance: neither laid out nor compared with what is there."""
    exports = read_json(run / "convert" / RECORD)
    write_json(run / "convert" / RECORD, {**exports, "reads": {"sft": "earlier"}})
    for command in (["publish", "tiny"], ["publish", "tiny", "--to", "user/tiny", "--dry-run"]):
        capsys.readouterr()
        assert main(command) == 1
        assert capsys.readouterr().err == (
            "koda: convert of runs/tiny was built from an earlier sft: `koda run --name tiny` brings it up to date "
            "first.\n"
        )
    assert not (run / "publish").exists() and hub.requests == []


STRAYS = [
    "hf/.DS_Store",
    "hf/._config.json",
    "hf/config.json~",
    "hf/#config.json#",
    "hf/.#config.json",
    "hf/.config.json.swp",
    "hf/notes.txt",
    "gguf/params.orig",
    "mlx/8bit/.ipynb_checkpoints/a",
    "gguf2/a",
    "notes",
]


def test_files_that_convert_did_not_write_are_not_published(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of macOS, of editors and of people: neither beside the exports, nor in what was laid out to be uploaded."""

    def laid_out_and_opened(out: Path, *inputs: Any) -> Any:
        formats = lay_out(out, *inputs)
        put(out / "hf/.DS_Store", b"stray")
        return formats

    for stray in STRAYS:
        put(run / "convert" / stray, b"stray")
    monkeypatch.setattr("tasks.publish.lay_out", laid_out_and_opened)
    publishing()
    (run / "publish/hf/.DS_Store").unlink()
    names = {Path(stray).name for stray in STRAYS}
    assert not [path for path in contents(run / "publish") if Path(path).name in names]
    for kind, place in PLACES.items():
        assert published(hub, place) == contents(run / "publish" / kind)
        assert checksums(run / "publish" / kind / "CHECKSUMS").keys() == published(hub, place).keys() - {"CHECKSUMS"}


def test_event_files_of_tensorboard_are_in_the_models_repository(hub: Hub, run: Path) -> None:
    """Those of the training that the model comes from, without the machine's name, and nothing that lies beside them.
    They are copies, as a training that goes on writes to its own."""
    log_event(run / "pretrain", Event.START, 0)
    training = identify(run / "pretrain")
    assert training is not None
    logs, written = run / "tensorboard/pretrain", "events.out.tfevents.1790000000.mine"
    current = logs / training.id.rpartition("-")[2]
    for name in (f"{written}.00000", f"{written}.00001", f"events/{written}.00000", f"{written}.00000~", ".DS_Store"):
        put(current / name, name.encode())
    (current / f"{written}.00009").symlink_to(run / "run.toml")
    put(logs / f"0123456789ab/{written}.00000", b"of an earlier training")
    put(run / f"tensorboard/other/{training.id}/{written}.00000", b"of no stage")
    publishing()
    with (current / f"{written}.00000").open("ab") as file:
        file.write(b"more")
    events = {path: data.decode() for path, data in published(hub).items() if path.startswith("runs/")}
    assert events == {
        "runs/pretrain/events/events.out.tfevents.1790000000.00000": f"events/{written}.00000",
        "runs/pretrain/events.out.tfevents.1790000000.00001": f"{written}.00000",
        "runs/pretrain/events.out.tfevents.1790000000.00002": f"{written}.00001",
    }
    assert main(["verify", str(run / "publish/hf")]) == 0
    assert not any("tfevents" in path for kind in ("gguf", "mlx") for path in published(hub, PLACES[kind]))


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize("data", [b"{}", None])
def test_export_that_was_changed_after_it_was_checked_is_refused(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], data: bytes | None, dry_run: list[str]
) -> None:
    file = run / "convert/hf/config.json"
    put(file, data) if data else file.unlink()
    assert main(["publish", "tiny", *dry_run]) == 1
    error = capsys.readouterr().err
    assert error == f"koda: {file} is not what convert wrote: `koda run --name tiny` builds it again.\n"
    assert not (run / "publish").exists()


def published_files(hub: Hub, run: Path, to: str) -> dict[str, dict[str, bytes]]:
    """The files in each place that publishing writes to."""
    if to == "local":
        return {str(folder): contents(folder) for folder in (run / "publish").glob("*/")}
    return {place: published(hub, place) for place in hub.repos}


def state(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


def test_card_that_the_hub_refuses_is_an_error_of_its_own(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.publish.card", lambda *_: "---\nlanguage: en\n---\n")
    with pytest.raises(KodaError, match='does not take the card of user/tiny: - Error: "license" is required'):
        publishing()
    assert hub.repos == {} and hub.received == 0
    assert [path for _, path in hub.requests].count("/api/validate-yaml") == 1


def test_published_settings_name_no_folder_of_this_machine() -> None:
    settings = (
        'a = "/home/me/clients/text"\nmix = { "../a b" = 1.0, "hub:u/d" = 2.0, "~/text" = 1.0, "here/text" = 1.0 }\n'
    )
    mix = 'mix = { "a b" = 1.0, "hub:u/d" = 2.0, "text-2" = 1.0, "here/text" = 1.0 }\n'
    assert public(settings) == 'a = "text"\n' + mix


def test_lineage_leads_from_a_published_file_to_the_corpus_it_was_trained_on(small_run: Path) -> None:
    """Of a real run: file → the export with its hash → the stages that it was built from, by their keys → tokenize →
    the hashes of the tokenizer and of every shard, as they are on the disk."""
    run = small_run / "runs/small"
    records = {path.parent.name: read_json(path) for path in run.glob(f"*/{RECORD}")}
    for kind in FORMATS:
        place = run / "publish" / kind
        hashes, lineage = checksums(place / "CHECKSUMS"), read_json(place / "lineage.json")
        outputs = {path: facts["sha256"] for path, facts in records["convert"]["outputs"].items()}
        exports = {
            path.removeprefix(f"{kind}/"): digest for path, digest in outputs.items() if path.startswith(f"{kind}/")
        }
        assert exports.items() <= hashes.items() and all(sha256(place / path) == exports[path] for path in exports)
        assert any(path.endswith((".safetensors", ".gguf")) for path in exports)

        stages, reached, following = lineage["stages"], set(), ["convert"]
        while following:
            reached.add(stage := following.pop())
            assert stages[stage]["key"] == records[stage]["key"]
            for source, key in stages[stage]["reads"].items():
                assert stages[source]["key"] == key
                following.append(source)
        assert reached == {"tokenize", "pretrain", "checkpoint", "sft", "extend", "convert"}

        assert lineage["tokenizer_sha256"] == sha256(run / "tokenize/tokenizer.json")
        train = run / "tokenize/train"
        shards = {file: digest for shard in lineage["corpus_shards"] for file, digest in shard["sha256"].items()}
        assert shards == {path.name: sha256(path) for path in train.glob("*.npy")} != {}
    assert sha256(run / "publish/hf/tokenizer.json") == lineage["tokenizer_sha256"]
