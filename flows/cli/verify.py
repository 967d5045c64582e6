"""`koda verify`: is a downloaded copy what was published?"""

import argparse
from pathlib import Path

from model.errors import KodaError
from model.files import CHECKSUMS, checksums, sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one with a file CHECKSUMS in it")


def main(arguments: argparse.Namespace) -> None:
    folder: Path = arguments.folder
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
