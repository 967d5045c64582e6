"""What is wrong with a tracker is said before a run begins."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.config import load, parsed
from model.errors import KodaError
from tasks.trackers import TRACKERS
from tasks.trackers.wandb import WandB

CREDENTIALS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL")


@pytest.fixture
def is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """W&B seems to be installed, and nobody is logged in."""
    monkeypatch.setattr(WandB, "package", "json")
    for name in CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def check(until: str = "", **track: str) -> None:
    load("tiny", parsed({f"{stage}.track": names for stage, names in track.items()})).check_files(until)


def test_unknown_tracker_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(KodaError) as refused:
        check(pretrain='["tensorbord"]')
    assert "pretrain.track" in str(refused.value) and all(name in str(refused.value) for name in TRACKERS)


@pytest.mark.parametrize("stage", ["pretrain", "sft", "extend"])
def test_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(
    stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also in a folder that has one of its name, as W&B itself makes it."""
    monkeypatch.setattr(WandB, "package", "no_such_package")
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    check(until="tokenize", **{stage: "wandb"})
    with pytest.raises(KodaError) as refused:
        check(**{stage: "wandb"})
    (line,) = str(refused.value).splitlines()
    assert line.endswith("uv pip install --constraint requirements.lock --editable '.[wandb]'")


@pytest.mark.usefixtures("is_installed")
def test_wandb_without_a_key_is_refused() -> None:
    with pytest.raises(KodaError, match=r"wandb has no key: set WANDB_API_KEY, or WANDB_MODE=offline"):
        check(pretrain="wandb")


@pytest.mark.usefixtures("is_installed")
@pytest.mark.parametrize(
    "variables", [{"WANDB_API_KEY": "k"}, {"WANDB_MODE": "offline"}, {"WANDB_IDENTITY_TOKEN_FILE": "token"}]
)
def test_wandb_with_a_key_in_the_environment_or_offline_is_accepted(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check(pretrain="wandb")


@pytest.mark.usefixtures("is_installed")
def test_wandb_that_is_logged_in_is_accepted_at_that_server_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai\n  login user\n  password key\n")
    check(pretrain="wandb")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(KodaError, match="no key"):
        check(pretrain="wandb")


def test_settings_and_their_check_import_no_tracker() -> None:
    packages = {tracker.package for tracker in TRACKERS.values()}
    code = (
        "import sys; from flows.config import load; from tasks.trackers import TRACKERS, check_trackers\n"
        "for name in TRACKERS:\n"
        "    try: check_trackers([name])\n"
        "    except Exception: pass\n"
        f"print({packages} & sys.modules.keys())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"
