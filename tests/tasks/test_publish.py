"""The publish stage, on the Hub of the tests: what arrives there, what a fault leaves, and what nobody gets to see."""

import hashlib
import json
import logging
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prefect
import pytest
from huggingface_hub import HfApi, ModelCard, snapshot_download
from prefect import flow
from prefect.blocks.system import Secret

from flows.cli import main
from flows.config import as_toml, load
from model.errors import KodaError
from model.files import checksums, write_json
from tasks.about import About
from tasks.cards import card
from tasks.hub import SECRET, upload
from tasks.publish import Publish, public, publish
from tasks.run import RECORD, Built, Run, read_built
from tests.hub import Fault, Hub

PLACES = {"hf": "user/tiny", "gguf": "user/tiny-GGUF", "mlx": "user/tiny-MLX"}
SOURCE = "hub:user/stories/en@main"
WEIGHTS = random.Random(0).randbytes(40_000)
EXPORTS = {
    "hf/config.json": b'{"model_type": "llama"}',
    "hf/tokenizer.json": b"{}",
    "hf/model.safetensors": WEIGHTS,
    "gguf/tiny-Q8_0.gguf": b"GGUF" + WEIGHTS[:20_000],
    "gguf/Modelfile": b"FROM tiny-Q8_0.gguf\n",
    "mlx/8bit/config.json": b"{}",
    "mlx/8bit/model.safetensors": WEIGHTS[20_000:],
}
TRAINED = {"steps": 2400, "tokens": 2_457_600, "loss": 3.19, "heldout_loss": 3.51, "restarts": 0}
PARITY = {"kl_divergence": 8e-5, "perplexity_ratio": 1.0002, "greedy_equal": 64}
MADE = {"n": 200, "acc": 0.575, "stderr": 0.035, "chance": 0.25, "above_chance": True}
STANDARD = {"n": 100, "acc": 0.31, "acc_norm": 0.36, "stderr": 0.04, "chance": 0.25}
FIGURES: dict[str, dict[str, Any]] = {
    "tokenize": {
        "documents": 2094,
        "train_tokens": 3_408_653,
        "heldout_tokens": 128_582,
        "vocab_size": 4096,
        "commits": {SOURCE: "abc123"},
    },
    "pretrain": TRAINED | {"parameters": 2_410_176},
    "checkpoint": {"step": 2400, "heldout_loss": 3.51, "parameters": 2_410_176},
    "sft": TRAINED | {"steps": 150, "ends_by_itself": 0.975},
    "extend": TRAINED | {"steps": 180, "context": 256, "rope_theta": 20945.9},
    "convert": {"exports": 3, "parity": dict.fromkeys(("hf", "gguf/tiny-Q8_0.gguf", "mlx/8bit"), PARITY)},
    "evaluate": {
        "bits_per_byte": 1.4294,
        "ratio_to_xz": 0.7332,
        "heldout_bytes": 338_746,
        "tasks_above_chance": 3,
        "tasks": {"ending": MADE, "word": MADE | {"acc": 0.65}, "order": MADE | {"acc": 0.99}},
        "standard": {"arc_easy": STANDARD, "boolq": STANDARD | {"acc": 0.44}},
    },
}
RESULTS = {0.575, 0.65, 0.99, 0.36, 0.44}  # of each task the figure that is quoted
READS = ("convert", "evaluate", "extend", "tokenize")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub, prefect_server: None) -> Path:
    """The folder of a run that lacks nothing but its publishing."""
    monkeypatch.setenv("KODA_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("flows.environment.set_environment", lambda quiet: None)  # of the server that is there already
    monkeypatch.setattr("flows.koda.report", lambda run: None)  # it would want a run's other files too
    run = tmp_path / "runs/tiny"
    for stage, figures in FIGURES.items():
        record = {
            "stage": stage,
            "key": hashlib.sha256(stage.encode()).hexdigest(),
            "reads": {},
            "settings": {"tokenize": {"source": SOURCE}} if stage == "tokenize" else {},
            "finished": "2026-11-25T10:00:00Z",
            "figures": figures,
            "versions": {"python": "3.11.7", "koda": "0.1.0"},
            "outputs": {},
        }
        write_json(run / stage / RECORD, record)
    (run / "run.toml").write_text(as_toml("tiny", load("tiny", {"tokenize": {"source": SOURCE}})))
    shards = [{"file": "00000.npy", "tokens": 3_408_653, "sha256": {"00000.npy": "c6" * 32}}]
    write_json(run / "tokenize/train/manifest.json", {"tokenizer": "88" * 32, "shards": shards})
    write_json(run / "extend/weights/COMMIT.json", {"config": {"vocab_size": 4096, "hidden_size": 192}})
    lines = [{"step": step, "loss": 9 - step / 4} for step in range(10)] + [{"step": 9, "heldout_loss": 7.0}]
    (run / "pretrain/metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for path, data in EXPORTS.items():
        put(run / "convert" / path, data)
    return run


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as they are, without the waits between them."""
    monkeypatch.setattr("tasks.hub.upload", upload.with_options(retry_delay_seconds=0))
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))


@flow
def publishing(to: str = "user/tiny") -> Built:
    """The stage by itself, on what the run `tiny` holds."""
    with Run("tiny") as run:
        inputs = (read_built(run.folder, stage) for stage in READS)
        return publish.build(run, "key", (Publish(to=to), About(), *inputs))


def put(path: Path, data: bytes) -> None:
    """A new file in the place of what stood there: publishing links what convert wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub: Hub, place: str = "user/tiny") -> dict[str, bytes]:
    """The files, without the .gitattributes that every repository begins with."""
    return {path: data for path, data in hub.repos[place].files.items() if path != ".gitattributes"}


def trees(hub: Hub) -> dict[str, int]:
    """Each file of each repository; one that is sent again unchanged has another number then."""
    return {f"{place}/{path}": id(blob) for place, repo in hub.repos.items() for path, blob in repo.head.tree.items()}


def fates(old: dict[str, Any], new: dict[str, Any]) -> dict[str, str]:
    """What became of each path that is not as it was: + new, ~ changed, - removed."""
    found = {path: "~" if path in old else "+" for path in new if new[path] != old.get(path)}
    return found | dict.fromkeys(old.keys() - new.keys(), "-")


def test_three_repositories_hold_what_was_laid_out(hub: Hub, run: Path) -> None:
    """Private, in one commit each, and nothing beside the layout, which is what convert wrote, a card and proofs."""
    built = publishing()
    assert hub.repos.keys() == set(PLACES.values())
    for kind, place in PLACES.items():
        repo = hub.repos[place]
        assert repo.private and built.figures["commits"][kind] == repo.head.oid
        assert [commit.message for commit in repo.commits] == ["initial commit", "Publish with Koda"]
        assert published(hub, place) == contents(run / "publish" / kind)
        made = contents(run / "convert" / kind)
        assert published(hub, place).items() >= made.items()
        assert published(hub, place).keys() - made == {"README.md", "CHECKSUMS", "lineage.json", "curve.png"}


def test_verify_tells_a_true_copy_from_a_damaged_one(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publishing()
    for place in PLACES.values():
        copy = Path(snapshot_download(place, local_dir=tmp_path / place, token=hub.token))
        assert main(["verify", str(copy)]) == 0
        files = checksums(copy / "CHECKSUMS")
        assert files.keys() == published(hub, place).keys() - {"CHECKSUMS"}
        for name in files:
            whole = (copy / name).read_bytes()
            for damaged in (bytes([whole[0] ^ 1]) + whole[1:], None):
                put(copy / name, damaged) if damaged else (copy / name).unlink()
                capsys.readouterr()
                assert main(["verify", str(copy)]) == 1
                told = capsys.readouterr().err.splitlines()
                assert told == [f"koda: {name}: {'is not what was published' if damaged else 'is missing'}"]
            put(copy / name, whole)
        assert main(["verify", str(copy)]) == 0


@pytest.mark.parametrize("listed", [b"SHA256 (a) = 00\n", b"\xff\xfe\n", f"{'0' * 64}  ../a\n".encode()])
def test_a_list_of_another_form_is_nobody_s_and_said_so(
    hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: bytes
) -> None:
    """To who verifies a copy, in one line; and what is there beside it stays."""
    put(tmp_path / "CHECKSUMS", listed)
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("user/tiny")
    for name in ("a", "CHECKSUMS"):
        api.upload_file(path_or_fileobj=listed, path_in_repo=name, repo_id="user/tiny")
    publishing()
    assert published(hub) == contents(run / "publish/hf") | {"a": listed}
    capsys.readouterr()
    assert main(["verify", str(tmp_path)]) == 1
    told = f"koda: {tmp_path}/CHECKSUMS, line 1: not a SHA-256, two spaces and a file of this folder.\n"
    assert capsys.readouterr().err == told


def test_only_what_changed_is_sent(hub: Hub, run: Path) -> None:
    publishing()
    before, received = trees(hub), hub.received
    publishing()
    assert fates(before, trees(hub)) == {} and all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert hub.received == received

    put(run / "convert/hf/config.json", b'{"model_type": "llama", "vocab_size": 4096}')
    publishing()
    assert fates(before, trees(hub)) == {"user/tiny/config.json": "~", "user/tiny/CHECKSUMS": "~"}
    assert hub.received == received

    before = trees(hub)
    put(run / "convert/mlx/8bit/model.safetensors", WEIGHTS[:10_000])
    publishing()
    assert fates(before, trees(hub)) == {"user/tiny-MLX/8bit/model.safetensors": "~", "user/tiny-MLX/CHECKSUMS": "~"}
    assert hub.received == received + 10_000


def test_what_is_gone_is_removed_and_what_others_put_there_stays(hub: Hub, run: Path, at_once: None) -> None:
    """Even where the list of what is ours cannot be had at first."""
    publishing()
    theirs = HfApi(endpoint=hub.url, token=hub.token).upload_file
    theirs(path_or_fileobj=b"theirs", path_in_repo="theirs.txt", repo_id="user/tiny")
    before = trees(hub)
    (run / "convert/hf/tokenizer.json").unlink()
    hub.fail("HEAD /user/tiny/resolve/main/CHECKSUMS", 400)
    publishing()
    assert fates(before, trees(hub)) == {"user/tiny/tokenizer.json": "-", "user/tiny/CHECKSUMS": "~"}
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
def test_faults_pass(hub: Hub, run: Path, at_once: None, request_: str, times: int) -> None:
    """Three in a row, of each kind one."""
    faults: list[Fault] = [429, 504, "drop"]
    for fault in faults:
        hub.fail(request_, fault, times)
    publishing()
    for kind, place in PLACES.items():
        assert published(hub, place) == contents(run / "publish" / kind) and len(hub.repos[place].commits) == 2
    met = [asked for asked in map(" ".join, hub.requests) if asked.startswith(request_)]
    assert len(met) == 3 * times + (3 if "create" in request_ else 1)


def test_a_commit_that_never_succeeds_leaves_the_version_before(hub: Hub, run: Path, at_once: None) -> None:
    """And what had arrived for it is not sent again."""
    publishing()
    before, received = hub.repos["user/tiny"].head, hub.received
    put(run / "convert/hf/model.safetensors", WEIGHTS[::-1])
    hub.fail("/api/models/user/tiny/commit/main", 504, times=6)
    with pytest.raises(KodaError, match=r"user/tiny could not be brought up to date.*504"):
        publishing()
    assert hub.repos["user/tiny"].head is before and hub.received == received + len(WEIGHTS)
    publishing()
    assert published(hub) == contents(run / "publish/hf") and published(hub)["model.safetensors"] == WEIGHTS[::-1]
    assert hub.received == received + len(WEIGHTS)


def test_a_commit_whose_answer_is_lost_is_still_named(hub: Hub, run: Path, at_once: None) -> None:
    """By the next try, which finds nothing left to do; and by a publishing later on."""
    hub.fail("/api/models/user/tiny/commit/main", "lost")
    for _ in range(2):
        commits = publishing().figures["commits"]
        assert commits == {kind: hub.repos[place].head.oid for kind, place in PLACES.items()}
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())


def test_a_place_that_was_published_to_in_vain_is_not_where_the_run_goes(
    hub: Hub, run: Path, at_once: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command: the stage adds no retries to those of the upload, and run.toml is as it was."""
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
        ("", "user/tiny", f"as HF_TOKEN in the environment, or in a Prefect Secret block named '{SECRET}'"),
    ],
    ids=["wrong", "of somebody else", "none"],
)
def test_without_a_token_that_may_write_nothing_is_sent(
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    token: str | None,
    to: str,
    message: str,
) -> None:
    """One line says what is missing, and nobody tries again."""
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(KodaError, match=re.escape(message)) as refused:
        publishing(to)
    assert "\n" not in str(refused.value)
    assert (hub.repos, hub.received) == ({}, 0)
    assert len({*hub.requests}) == len(hub.requests) == {"": 0, "hf_wrong": 1, None: 4}[token]
    if token is not None:
        capsys.readouterr()
        assert main(["publish", "tiny", "--to", to, "--dry-run"]) == 1
        assert capsys.readouterr().err == f"koda: {refused.value}\n"


def test_the_token_may_lie_in_a_secret_block(hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    Secret(value=hub.token).save(SECRET)
    try:
        publishing()
    finally:
        Secret.delete(SECRET)
    assert hub.repos.keys() == set(PLACES.values())


def test_the_token_is_written_nowhere(
    hub: Hub, run: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the real command, with the real wait for a retry, in run folder, output, logs or Prefect's database."""
    with caplog.at_level(logging.DEBUG):
        hub.fail("/api/models/user/tiny/commit/main", 504)
        assert main(["publish", "tiny", "--to", "user/tiny"]) == 0
    assert hub.repos.keys() == set(PLACES.values())
    database = Path(prefect.settings.PREFECT_SERVER_DATABASE_CONNECTION_URL.value().partition("///")[2])
    deadline = time.monotonic() + 30
    while not holding(
        f"user/tiny-MLX: {len(published(hub, PLACES['mlx']))} new", database.parent
    ):  # it comes in batches
        assert time.monotonic() < deadline
        time.sleep(0.1)
    out, err = capfd.readouterr()
    assert "user/tiny-MLX" in out and "504 Gateway" in caplog.text
    assert hub.token not in out + err + caplog.text
    assert holding(hub.token, run.parent, database.parent, prefect.settings.PREFECT_HOME.value()) == []


def holding(text: str, *folders: Path) -> list[Path]:
    """The files below the folders that hold these words."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize("target", ["secret.txt", "secrets"])
@pytest.mark.parametrize("to", ["local", "user/tiny"])
def test_a_link_is_refused(hub: Hub, run: Path, tmp_path: Path, target: str, to: str) -> None:
    """To a file or a folder: it could lead anywhere."""
    put(tmp_path / "secret.txt", b"secret")
    put(tmp_path / "secrets/secret.txt", b"secret")
    (run / "convert/mlx/8bit/link").symlink_to(tmp_path / target)
    with pytest.raises(KodaError, match="link is no plain file"):
        publishing(to)
    assert hub.requests == [] and not (run / "publish").exists()


@pytest.mark.parametrize("to", ["local", "user/tiny"])
def test_a_dry_run_tells_what_publishing_then_does(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """By the commands: with nothing there, with a file of each fate and an export given up, and with no change."""
    command = ["publish", "tiny", "--to", to]
    for turn in range(3):
        if turn == 1:
            put(run / "convert/hf/config.json", b"{}")
            put(run / "convert/hf/new.json", b"new")
            (run / "convert/hf/tokenizer.json").unlink()
            shutil.rmtree(run / "convert/mlx")
            put(run / "publish/hf/theirs.txt", b"a local folder is replaced as a whole")
        left, there, asked = state(run), where_it_goes(hub, run, to), len(hub.requests)
        capsys.readouterr()
        assert main([*command, "--dry-run"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert state(run) == left and where_it_goes(hub, run, to) == there
        assert {method for method, _ in hub.requests[asked:]} <= {"GET", "HEAD"}
        assert main(command) == 0
        now, expected = where_it_goes(hub, run, to), []
        for place in now.keys() | there.keys():
            old, new = there.get(place, {}), now.get(place, {})
            changed = fates(old, new)
            count = {sign: [*changed.values()].count(sign) for sign in "+~-"}
            size = sum(len(new.get(path, b"")) for path in changed)
            if place == PLACES["mlx"] and turn:
                assert not changed  # what the run no longer makes stays there, and is not spoken of
                continue
            expected += [
                f"{place}: {count['+']} new, {count['~']} changed, {count['-']} removed ({size:,} bytes), "
                f"{len(new.keys() & old.keys()) - count['~']} as they are",
                *(f"  {changed[path]} {path}  {len(new.get(path, b'')):,} bytes" for path in changed),
            ]
        assert sorted(told) == sorted(expected)
        assert ("  - tokenizer.json  0 bytes" in told) == ("  + new.json  3 bytes" in told) == (turn == 1)


def where_it_goes(hub: Hub, run: Path, to: str) -> dict[str, dict[str, bytes]]:
    """What lies where publishing puts it, by place."""
    if to == "local":
        return {str(folder): contents(folder) for folder in (run / "publish").glob("*/")}
    return {place: published(hub, place) for place in hub.repos}


def state(run: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", PLACES)
def test_a_card_says_to_the_hub_and_to_people_what_the_run_found(hub: Hub, run: Path, kind: str) -> None:
    inputs: Any = [read_built(run, stage) for stage in READS]
    text = card(kind, "tiny", PLACES[kind], About(author="Ada"), *inputs)
    found = ModelCard(text)
    found.validate()
    results = found.data.eval_results or []
    assert len(results) == len(RESULTS) and {result.metric_value for result in results} == RESULTS
    index = found.data.to_dict()["model-index"]
    assert len({json.dumps(result["dataset"]) for result in index[0]["results"]}) == len(RESULTS)
    assert found.data.license == "apache-2.0" and found.data.datasets == ["user/stories"]
    assert found.data.base_model == (None if kind == "hf" else "user/tiny")
    sections = ["How to run it", "Architecture", "Training", "Evaluation", "Data", "Limits", "Lineage"]
    assert [line for line in re.findall("^## (.+)$", text, re.MULTILINE) if line in sections] == sections
    for figure in ("by Ada", "2,410,176", "2,457,600", "1.429", "57.5 ± 3.5", "3,408,653", "| `hidden_size` | 192 |"):
        assert figure in text


def test_a_card_that_the_hub_refuses_is_an_error_of_its_own(
    hub: Hub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.publish.card", lambda *_: "---\nlanguage: en\n---\n")
    with pytest.raises(KodaError, match='does not take the card of user/tiny: - Error: "license" is required'):
        publishing()
    assert hub.repos == {} and hub.received == 0
    assert [path for _, path in hub.requests].count("/api/validate-yaml") == 1


def test_what_is_published_names_no_folder_of_this_machine() -> None:
    told = 'a = "/home/me/clients/text"\nmix = { "../a b" = 1.0, "hub:u/d" = 2.0, "~/text" = 1.0, "here/text" = 1.0 }\n'
    mix = 'mix = { "a b" = 1.0, "hub:u/d" = 2.0, "text-2" = 1.0, "here/text" = 1.0 }\n'
    assert public(told) == 'a = "text"\n' + mix
