"""`koda status`: how far a run is."""

import argparse
import json
import time


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="tiny")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--watch", action="store_true", help="keep it on the screen while the run goes on")


def main(arguments: argparse.Namespace) -> None:
    from flows.server.up import state
    from tasks.reports.status import as_lines, status

    if arguments.watch:
        watch(arguments.name)
    read = status(arguments.name)
    print(json.dumps(read, indent=1) if arguments.json else "\n".join([*as_lines(read), *state()]))


def watch(name: str) -> None:
    """Keep the status on the screen for as long as a process works on the run."""
    from rich.live import Live
    from rich.text import Text

    from model.files import is_locked
    from tasks.reports.status import as_lines, status
    from tasks.runs.paths import existing

    with Live(refresh_per_second=1) as live:
        while is_locked(existing(name) / ".lock"):
            live.update(Text("\n".join(as_lines(status(name)))))
            time.sleep(1)
        live.update(Text(""))
