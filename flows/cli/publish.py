"""`koda publish`: a run's exports, in its folder or on the Hugging Face Hub."""

import argparse
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
        run(arguments.name, "", "publish", "publish", settings)


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
