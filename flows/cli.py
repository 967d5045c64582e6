"""The command `koda`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.errors import KodaError


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for an error that a person can mend, 130 after Ctrl-C."""
    arguments = parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except KodaError as error:
        print(f"koda: {error}".replace("\n", "\n      "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("koda: stopped; the same command goes on from here.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="koda", description="Train a language model from scratch, and carry it to the people who run it."
    )
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], help_: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help_, description=help_)
        made.set_defaults(command=function)
        return made

    run = command("run", run_, "Run the pipeline; a stage whose result stands is skipped.")
    run.add_argument(
        "--preset", default="", help="a preset's name (default: the run's own settings; tiny, if it is new)"
    )
    run.add_argument("--name", help="the run's name, its folder below runs/ (default: the preset's)")
    run.add_argument(
        "--from", dest="start", default="", metavar="STAGE", help="build this stage and those after it anew"
    )
    run.add_argument("--until", default="", metavar="STAGE", help="end with this stage")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, as section.key=value"
    )

    import_ = command("import", import_run, "Begin a run with a LlamaForCausalLM that others trained.")
    import_.add_argument("folder", type=Path, metavar="FOLDER", help="config.json, safetensors and the tokenizer")
    import_.add_argument("--name", required=True, help="the run's name")
    import_.add_argument("--preset", default="tiny", help="what the stages after it are set to (default: tiny)")
    import_.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")

    status = command("status", status_, "How far a run is.")
    status.add_argument("name", nargs="?", default="tiny")
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--watch", action="store_true", help="keep it on the screen while the run goes on")

    report = command("report", report_, "Write a run's report; with a second run, one that compares the two.")
    report.add_argument("name", nargs="?", default="tiny")
    report.add_argument("against", nargs="?", default="", metavar="OTHER", help="the run to compare with")

    chat = command("chat", chat_, "Talk to a run's model.")
    chat.add_argument("name", nargs="?", default="tiny")
    chat.add_argument("--runtime", choices=("jax", "hf", "gguf", "mlx"), default="jax")
    chat.add_argument("--prompt", help="ask this, print the answer, and end")
    chat.add_argument("--limit", type=int, default=100, help="tokens in an answer at most (default: 100)")
    chat.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token each time (default)")
    chat.add_argument("--top-k", type=int, default=0, help="choose among so many of the likeliest tokens (0: all)")
    chat.add_argument("--top-p", type=float, default=1.0, help="choose among the likeliest of this probability")
    chat.add_argument("--repetition-penalty", type=float, default=1.0, help="against saying the same again (1: none)")
    chat.add_argument("--seed", type=int, default=0, help="the same seed, the same answer")

    plan = command("plan", plan_, "What a run will take, before any of it is paid for.")
    plan.add_argument("--preset", default="koda-1.3b", help="a preset's name (default: koda-1.3b)")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    plan.add_argument("--gpu", default="L40S", help="L40S, A100, H100 or H200 (default: L40S)")
    plan.add_argument("--count", type=int, default=2, help="devices (default: 2)")
    plan.add_argument("--utilisation", type=float, default=0.35, help="share of peak FLOP/s assumed (default: 0.35)")
    plan.add_argument("--budget-hours", type=float, help="what would be trained best in so many hours?")
    plan.add_argument("--json", action="store_true", help="for programs")

    evaluate = command("eval", eval_, "Evaluate a model: a run's, a Hugging Face or MLX folder, or a GGUF file.")
    evaluate.add_argument("model", metavar="MODEL", help="a run, RUN/STAGE, a folder or a .gguf file")
    evaluate.add_argument("--suite", choices=("standard", "homemade"), default="standard", help="(default: standard)")
    evaluate.add_argument("--tasks", default="", metavar="A,B", help="some of the suite's tasks (default: all)")
    evaluate.add_argument(
        "--data", default="", metavar="DIR", help="local JSONL for the standard suite (default: the Hub)"
    )
    evaluate.add_argument("--limit", type=int, default=0, help="items of each task at most (0: all)")
    evaluate.add_argument("--against", default="", metavar="MODEL", help="compare with this one, item by item")
    evaluate.add_argument("--json", action="store_true", help="for programs")

    publish = command("publish", publish_, "Publish a run's exports: into its folder, or on the Hugging Face Hub.")
    publish.add_argument("name", nargs="?", default="tiny")
    publish.add_argument("--to", default="", metavar="USER/NAME", help="where on the Hub (default: as the run is set)")
    publish.add_argument("--dry-run", action="store_true", help="only show what would change")

    verify = command("verify", verify_, "Is a downloaded copy what was published?")
    verify.add_argument("folder", type=Path, metavar="FOLDER", help="one with a file CHECKSUMS in it")

    command("up", up_, "Start a Prefect server, the deployments and a worker; or what of it is missing.")
    down = command("down", down_, "End what `koda up` started; trainings save, and the next `koda up` goes on.")
    down.add_argument("--wait", action="store_true", help="let the runs that go on finish first")
    return top


def run_(arguments: argparse.Namespace) -> int:
    return _run(arguments, arguments.name or arguments.preset or "tiny", arguments.start, arguments.until)


def import_run(arguments: argparse.Namespace) -> int:
    from flows.importing import settings

    done = _run(arguments, arguments.name, "", "checkpoint", settings(arguments.folder, arguments.name))
    print(f"  go on with koda run --name {arguments.name} --from sft")
    return done


def _run(arguments: argparse.Namespace, name: str, start: str, until: str, more: Any = None) -> int:
    from flows.environment import causes_only, set_environment

    set_environment(quiet=True)
    from flows.config import load, parsed
    from flows.koda import pipeline
    from flows.status import closing_lines
    from tasks.run import Run, folder_of

    settings = parsed(dict(_pair(text) for text in arguments.set))
    for section, values in (more or {}).items():
        settings[section] = values | settings.get(section, {})
    load(arguments.preset, settings, folder_of(name))  # refuse before anything starts
    Run(name, start=start, until=until)
    with causes_only():
        pipeline(preset=arguments.preset, name=name, start=start, until=until, settings=settings)
    print("\n".join(closing_lines(name)))
    return 0


def status_(arguments: argparse.Namespace) -> int:
    from flows.status import as_lines, status, watch
    from flows.up import state

    if arguments.watch:
        watch(arguments.name)
    found = status(arguments.name)
    print(json.dumps(found, indent=1) if arguments.json else "\n".join([*as_lines(found), *state()]))
    return 0


def report_(arguments: argparse.Namespace) -> int:
    from tasks.run import existing

    folders = [existing(name) for name in filter(None, (arguments.name, arguments.against))]
    from tasks.compare import compare  # here, so that a wrong name is told in a moment
    from tasks.report import report

    print(report(*folders) if len(folders) == 1 else compare(*folders))
    return 0


def chat_(arguments: argparse.Namespace) -> int:
    from flows.chat import converse
    from flows.environment import causes_only
    from model.sampling import Sampling

    sampling = Sampling(**{field: getattr(arguments, field) for field in Sampling._fields})
    for right, field, wanted in (
        (sampling.limit >= 1, "limit", "1 token or more"),
        (sampling.temperature >= 0, "temperature", "0, or a number above it"),
        (sampling.top_k >= 0, "top_k", "a number of tokens, or 0 for all"),
        (0 < sampling.top_p <= 1, "top_p", "a probability above 0 and up to 1"),
        (sampling.repetition_penalty >= 1, "repetition_penalty", "1, or a number above it"),
    ):
        if not right:
            raise KodaError(f"--{field.replace('_', '-')} {getattr(sampling, field)}: it takes {wanted}.")
    with causes_only(), contextlib.suppress(EOFError):
        converse(arguments.name, arguments.runtime, arguments.prompt, sampling)
    return 0


def plan_(arguments: argparse.Namespace) -> int:
    from flows.config import parsed
    from flows.plan import as_lines, plan

    settings = parsed(dict(_pair(text) for text in arguments.set))
    found = plan(
        arguments.preset, settings, arguments.gpu, arguments.count, arguments.utilisation, arguments.budget_hours
    )
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(as_lines(found)))
    return 0


def eval_(arguments: argparse.Namespace) -> int:
    from flows.environment import causes_only
    from flows.evaluation import as_lines, evaluate

    names = [name for name in arguments.tasks.split(",") if name]
    if arguments.limit < 0:
        raise KodaError(f"--limit {arguments.limit}: a number of items, or 0 for all.")
    with causes_only():
        found = evaluate(arguments.model, arguments.suite, names, arguments.data, arguments.limit, arguments.against)
    print(json.dumps(found, indent=1) if arguments.json else "\n".join(as_lines(found)))
    return 0


def publish_(arguments: argparse.Namespace) -> int:
    from flows.environment import causes_only, set_environment

    set_environment(quiet=True)
    from flows.config import as_toml, begun_with, load
    from tasks.publish import would_change
    from tasks.run import existing

    more = {"publish": {"to": arguments.to}} if arguments.to else {}
    if not arguments.dry_run:
        existing(arguments.name)
        given = argparse.Namespace(preset="", set=[])
        return _run(given, arguments.name, "publish", "publish", more)
    folder = existing(arguments.name)
    config = load("", more, folder)
    with causes_only():
        written = as_toml(begun_with("", folder), config)
        print("\n".join(would_change(arguments.name, written, config.publish, config.about)))
    return 0


def verify_(arguments: argparse.Namespace) -> int:
    from model.files import CHECKSUMS, checksums, sha256

    listed = arguments.folder / CHECKSUMS
    if not listed.is_file():
        raise KodaError(f"{arguments.folder} has no file {CHECKSUMS}: it is no folder that Koda published.")
    found = checksums(listed)
    if not found:
        raise KodaError(f"{listed} lists no file: this is no copy of what Koda published.")
    wrong = [
        f"{path}: {'is not what was published' if (arguments.folder / path).is_file() else 'is missing'}"
        for path, digest in found.items()
        if not (arguments.folder / path).is_file() or sha256(arguments.folder / path) != digest
    ]
    if wrong:
        raise KodaError("\n".join(wrong))
    print(f"{arguments.folder}: all {len(found)} files are what was published.")
    return 0


def up_(_: argparse.Namespace) -> int:
    from flows.up import up

    up()
    return 0


def down_(arguments: argparse.Namespace) -> int:
    from flows.up import down

    down(arguments.wait)
    return 0


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise KodaError(f"--set {text}: settings are given as section.key=value.")
    return key, value


if __name__ == "__main__":
    sys.exit(main())
