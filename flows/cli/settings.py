"""`--set section.key=value`, which several commands take."""

import argparse

from model.errors import KodaError


def add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, as section.key=value"
    )


def pairs(arguments: argparse.Namespace) -> dict[str, str]:
    """What --set was given: `{"pretrain.steps": "200"}`. Raises KodaError for a text without a value."""
    read = {}
    for text in arguments.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise KodaError(f"--set {text}: settings are given as section.key=value.")
        read[key] = value
    return read
