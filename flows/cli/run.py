"""`koda run`: the pipeline from the command line."""

import argparse
from typing import TYPE_CHECKING

from flows.cli.settings import add_set, pairs
from flows.server.embedded import embedded_server, prepare_environment

if TYPE_CHECKING:  # importing it takes seconds, which `koda --help` need not wait for
    from flows.config import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", default="", help="a preset's name (default: the run's own settings; tiny, if it is new)"
    )
    parser.add_argument("--name", help="the run's name, its folder below runs/ (default: the preset's)")
    parser.add_argument(
        "--from",
        dest="start",
        default="",
        metavar="STAGE",
        help="rebuild this stage and those after it; take the ones before it as they are",
    )
    parser.add_argument("--until", default="", metavar="STAGE", help="end with this stage")
    add_set(parser)


def main(arguments: argparse.Namespace) -> None:
    prepare_environment()  # before anything imports Prefect
    from flows.config import parsed

    name = arguments.name or arguments.preset or "tiny"
    run(name, arguments.preset, arguments.start, arguments.until, parsed(pairs(arguments)))


def run(name: str, preset: str, start: str, until: str, settings: "Settings") -> None:
    """Run the pipeline in this process, and print what it made; `prepare_environment` comes first. Raises KodaError."""
    from flows.config import load
    from flows.environment import causes_only
    from tasks.reports.status import closing_lines
    from tasks.runs.paths import folder_of
    from tasks.runs.run import Run

    config = load(preset, settings, folder_of(name))  # refuse in a moment, before the server starts
    Run(name, start=start, until=until).check()
    config.check_files(until)
    from flows.koda import pipeline

    with embedded_server(), causes_only():
        pipeline(preset=preset, name=name, start=start, until=until, settings=settings)
    print("\n".join(closing_lines(name)))
