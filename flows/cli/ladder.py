"""`koda ladder`: small trainings on a run's text, and the law that says what larger ones will reach."""

import argparse
import math

from flows.cli.settings import add_set, pairs
from flows.server.embedded import embedded_server, prepare_environment
from model.errors import KodaError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="tiny", help="the run whose text and family it is; it may be new")
    parser.add_argument(
        "--preset", default="", help="a preset's name (default: the run's own settings; tiny, if it is new)"
    )
    parser.add_argument(
        "--hours",
        type=float,
        default=0.0,
        help="what it may take on this machine (default: a tenth of the run's compute for the longest of each size)",
    )
    add_set(parser)


def main(arguments: argparse.Namespace) -> None:
    a = arguments
    if not 0 <= a.hours < math.inf:
        raise KodaError("--hours is above 0.")
    prepare_environment()  # before anything imports Prefect
    from flows.config import load, parsed
    from flows.environment import causes_only
    from tasks.ladder import check
    from tasks.reports.ladder_page import as_lines
    from tasks.runs.paths import folder_of
    from tasks.runs.run import Run

    settings, folder = parsed(pairs(a)), folder_of(a.name)
    config = load(a.preset, settings, folder)  # refuse in a moment, before the server starts
    Run(a.name).check()
    config.check_files("tokenize")
    check(config.model, config.pretrain)
    from flows.ladder import ladder

    with embedded_server(), causes_only():
        ladder(name=a.name, preset=a.preset, hours=a.hours, settings=settings)
    print("\n".join(as_lines(folder)))
