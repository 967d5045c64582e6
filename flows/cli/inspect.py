"""`koda inspect`: a page about the inside of a run's model."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="tiny")
    parser.add_argument("--text", default="", help="a text to follow through the network (default: held-out text)")
    parser.add_argument("--json", action="store_true", help="for programs: everything that was measured")


def main(arguments: argparse.Namespace) -> None:
    from tasks.runs.paths import existing

    folder = existing(arguments.name)
    from flows.environment import causes_only, set_environment

    set_environment(quiet=True)
    from tasks.inspection import inspect
    from tasks.reports.recorded import INSPECTION

    with causes_only():
        page = inspect(folder, arguments.text)
    print((folder / INSPECTION).read_text(encoding="utf-8") if arguments.json else page)
