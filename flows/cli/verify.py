"""`koda verify`: is a downloaded copy what was published? Does a training give the same bits again?"""

import argparse
from pathlib import Path

from model.errors import KodaError
from model.files import CHECKSUMS, checksums, sha256
from model.training.records import JOB


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="FOLDER|RUN", help=f"one with a file {CHECKSUMS} in it; with --replay, a run")
    parser.add_argument(
        "--replay",
        nargs="?",
        const="",
        metavar="A:B",
        help="train the steps from checkpoint A to checkpoint B again, and compare every bit (default: the two newest)",
    )


def main(arguments: argparse.Namespace) -> None:
    if arguments.replay is None:
        published(Path(arguments.what))
    else:
        replayed(arguments.what, arguments.replay)


def published(folder: Path) -> None:
    """Compare a folder with the checksums that it was published with."""
    if not (folder / CHECKSUMS).is_file():
        raise KodaError(f"{folder} has no file {CHECKSUMS}: it is no folder that Koda published.")
    listed = checksums(folder / CHECKSUMS)
    if not listed:
        raise KodaError(f"{folder / CHECKSUMS} lists no file: this is no copy of what Koda published.")
    wrong = [
        f"{path}: {'is not what was published' if (folder / path).is_file() else 'is missing'}"
        for path, digest in listed.items()
        if not (folder / path).is_file() or sha256(folder / path) != digest
    ]
    if wrong:
        raise KodaError("\n".join(wrong))
    print(f"{folder}: all {len(listed)} files are what was published.")


def replayed(run: str, steps: str) -> None:
    """Train some steps of a run's pretraining again, and compare."""
    from tasks.replay import replay, span
    from tasks.runs.paths import existing

    training = existing(run) / "pretrain"
    if not (training / JOB).is_file():
        raise KodaError(f"{training} has no training: there is nothing to replay.")
    first, last = span(training, steps)
    print(f"{run}: step {first:,} to {last:,} again …", flush=True)
    differ, count = replay(training, first, last)
    if differ:
        raise KodaError(
            f"{run}: {len(differ)} of {count} arrays at step {last:,} are not what the steps from {first:,} give: "
            f"{', '.join(differ)}. One of the two was computed wrongly: replay once more, and on a machine of the same "
            f"kind. To go on from step {first:,}, remove the later folders in {training / 'checkpoints'}."
        )
    print(f"{run}: all {count} arrays at step {last:,} are the same in every bit.")
