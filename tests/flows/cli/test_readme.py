"""The commands of the README, copied from it, as somebody who has never seen this types them."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from flows.cli.main import parser
from tests.flows.up import Up
from tests.hub import Hub

README = (Path(__file__).parents[3] / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]


@pytest.mark.parametrize("words", [c[1:] for c in COMMANDS if c[0].endswith("bin/koda")], ids=" ".join)
def test_koda_commands_of_the_readme_parse(words: list[str]) -> None:
    parser(words[0]).parse_args(words)


def test_readme_has_commands() -> None:
    assert sum(c[0].endswith("bin/koda") for c in COMMANDS) > 15
    assert ["make", "run"] in COMMANDS


@pytest.mark.up
@pytest.mark.timeout(1800)
def test_commands_of_the_readme_work_in_their_order(up: Up, small_run: Path) -> None:
    """A smaller run than `make run` makes, under its name; then what the README does with it, of a night, of what
    publishing would change, and of a run that Prefect starts."""
    shutil.copytree(small_run / "runs/small", up.folder / "runs/tiny")
    for line in ("koda status tiny", "koda report tiny", "koda verify runs/tiny/publish/hf"):
        assert "tiny" in up.koda(*typed(line))
    up.prefect(*typed("prefect deployment run koda/nightly-eval"), "--watch")
    assert (up.folder / "runs/tiny/nightly/history.jsonl").is_file()
    with Hub() as hub:
        online = up._replace(environment=up.environment | hub.env)
        changes = online.koda(*typed("koda publish tiny --to USER/NAME --dry-run"))
    assert all(f"USER/NAME{kind}: " in changes for kind in ("", "-GGUF", "-MLX")) and not hub.repos
    # Last, because the exports are stale once it has trained: then they are not published.
    started = typed("prefect deployment run koda/pretrain --param name=short")
    assert "Completed" in up.prefect(*(word.replace("short", "tiny") for word in started), "--watch")


def typed(beginning: str) -> list[str]:
    """The words behind the program, of the shortest command that begins so."""
    words = beginning.split()
    return min((c[1:] for c in COMMANDS if [Path(c[0]).name, *c[1:]][: len(words)] == words), key=len)
