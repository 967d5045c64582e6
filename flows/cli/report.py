"""`koda report`: a page about a run, or about two."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="tiny")
    parser.add_argument("against", nargs="?", default="", metavar="OTHER", help="the run to compare with")


def main(arguments: argparse.Namespace) -> None:
    from tasks.runs.paths import existing

    folders = [existing(name) for name in (arguments.name, arguments.against) if name]
    from tasks.reports.comparison import compare  # here, so that a wrong name is refused in a moment
    from tasks.reports.run_report import report

    print(report(*folders) if len(folders) == 1 else compare(*folders))
