"""The command `koda`: one file below here for each of its commands, and what they share."""

import argparse
import io
import os
import sys
from importlib import import_module

from model.errors import KodaError

COMMANDS = {  # a command's module has `add_arguments(parser)` and `main(arguments)`, and is imported for that alone
    "run": ("run", "Run the pipeline; a stage whose result is up to date is skipped."),
    "import": ("import_model", "Begin a run with a LlamaForCausalLM that others trained."),
    "convert": (
        "convert",
        "Export a LlamaForCausalLM that others trained, or a run's: transformers, llama.cpp, MLX.",
    ),
    "status": ("status", "How far a run is."),
    "report": ("report", "Write a run's report; with a second run, one that compares the two."),
    "inspect": ("inspect", "Write a page about the inside of a run's model: how it learned, and what happens in it."),
    "chat": ("chat", "Talk to a run's model."),
    "serve": ("serve", "Serve a model: OpenAI's API, and a page to chat."),
    "ladder": ("ladder", "Train small models on a run's text, and say what the run will reach."),
    "plan": ("plan", "What a run will take, before any of it is paid for."),
    "eval": ("eval", "Evaluate a model: a run's, a Hugging Face or MLX folder, or a GGUF file."),
    "publish": ("publish", "Publish a run's exports: into its folder, or on the Hugging Face Hub."),
    "verify": ("verify", "Is a downloaded copy what was published?"),
    "up": ("up", "Start a Prefect server, the deployments and a worker; or those of them that are not running."),
    "down": ("down", "End what `koda up` started; trainings save, and the next `koda up` goes on with them."),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for an error that a person can fix, 130 after Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may have no `…` or `×`
    try:
        arguments = parser(argv[0] if argv else "").parse_args(argv)
        arguments.command(arguments)
        print(end="", flush=True)  # here, where an error can still be reported
    except KodaError as error:
        print(f"koda: {error}".replace("\n", "\n      "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("koda: stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `koda status | head`: nobody reads the rest
        return 0
    except OSError as error:
        print(f"koda: {error}", file=sys.stderr)
        return 1
    finally:
        _discard_unwritten()
    return 0


def _discard_unwritten() -> None:
    """Discard what could not be printed: else the interpreter tries again at its end, and reports that."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser(chosen: str) -> argparse.ArgumentParser:
    """The command line, with the arguments of the `chosen` command."""
    top = argparse.ArgumentParser(
        prog="koda", description="Train a language model from scratch, and carry it to the people who run it."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        added = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            command = import_module(f"flows.cli.{module}")
            command.add_arguments(added)
            added.set_defaults(command=command.main)
    return top


if __name__ == "__main__":
    sys.exit(main())
