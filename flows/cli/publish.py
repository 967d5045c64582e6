"""`koda publish`: a run's exports, in its folder or on the Hugging Face Hub."""

import argparse
import os
from typing import TYPE_CHECKING

from flows.cli.run import run
from flows.server.embedded import prepare_environment

if TYPE_CHECKING:
    from flows.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="tiny")
    parser.add_argument("--to", default="", metavar="USER/NAME", help="where on the Hub (default: as the run is set)")
    parser.add_argument("--dry-run", action="store_true", help="only show what would change")


def main(arguments: argparse.Namespace) -> None:
    from tasks.runs.paths import existing

    existing(arguments.name)
    settings: Settings = {"publish": {"to": arguments.to}} if arguments.to else {}
    if arguments.dry_run:
        print("\n".join(dry_run(arguments.name, settings)))
    else:
        prepare_environment()  # before anything imports Prefect
        check_hub(arguments.name, settings)
        run(arguments.name, "", "publish", "publish", settings)


def check_hub(name: str, settings: "Settings") -> None:
    """Raise KodaError, before the server starts, where the Hub cannot be published to; a token in a Secret block is
    checked by the stage, which can read it."""
    from flows.config import load
    from tasks import hub
    from tasks.runs.paths import folder_of

    to = load("", settings, folder_of(name)).publish.to
    if to != "local" and "HF_TOKEN" in os.environ:
        hub.check(to)


def dry_run(name: str, settings: "Settings") -> list[str]:
    """What publishing the run would change, a line each."""
    from flows.environment import causes_only, set_environment

    set_environment(quiet=True)
    from flows.config import as_toml, begun_with, load
    from tasks.publish import would_change
    from tasks.runs.paths import folder_of

    folder = folder_of(name)
    config = load("", settings, folder)
    with causes_only():
        return would_change(name, as_toml(begun_with("", folder), config), config.publish, config.about)
