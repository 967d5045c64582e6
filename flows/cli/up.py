"""`koda up`: Prefect on this machine."""

import argparse


def add_arguments(_: argparse.ArgumentParser) -> None:
    pass


def main(_: argparse.Namespace) -> None:
    from flows.server.up import up

    up()
