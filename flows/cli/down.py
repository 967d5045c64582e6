"""`koda down`: end what `koda up` started."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="let the runs that go on finish first")


def main(arguments: argparse.Namespace) -> None:
    from flows.server.up import down

    down(arguments.wait)
