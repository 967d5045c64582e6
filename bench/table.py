"""The command line of a bench, and the table that it prints.

Every bench has a smoke form, `--smoke`: the same code with the smallest sizes, to show that it and all its peers run.
`tests/bench/test_smoke.py` runs it.
"""

import argparse
import contextlib
import json
import os
import platform
import shlex
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

COMMAND = shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


class Spread(NamedTuple):
    """The results of a repeated measurement."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: list[float]) -> "Spread":
        return Spread(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        def short(value: float) -> str:
            return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

        return f"{short(self.median)} ({short(self.low)}–{short(self.high)})"


def options(description: str | None, *, rounds: int = 0, run: str = "") -> argparse.ArgumentParser:
    """The options that every bench has; `--rounds` where it repeats, and `--run` where it reads a run: `run` is why.

    `--peer` is for the bench itself, which starts each of its peers with it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each peer (default: {rounds})")
    if run:
        parser.add_argument("--run", default="tiny", help=f"a run's name or folder: {run} (default: tiny)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes: the figures mean nothing")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, **smallest: Any) -> argparse.Namespace:
    """Read the command line. `smallest`: the defaults of the smoke form.

    From here on SIGTERM ends the bench as Ctrl-C does, so that it ends what it started.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if "--smoke" in sys.argv:
        parser.set_defaults(**smallest)
    return parser.parse_args()


@contextlib.contextmanager
def open_run(name: str) -> Iterator[Path]:
    """The folder of the run of this name, or at this path; no name: a small run, trained for the block.

    Exits with a message where there is no such run. A small run takes a minute; the block runs in its project's folder.
    """
    if name:
        from tasks.runs.paths import folder_of

        folder = Path(name) if os.sep in name else folder_of(name)
        if not (folder / "run.toml").is_file():
            raise SystemExit(f"bench: there is no run at {folder}. `koda run --name {folder.name}` trains one.")
        yield folder.absolute()
        return
    from model.data import docs
    from tests import pipeline

    with tempfile.TemporaryDirectory() as scratch:
        prose = "\n\n".join(topic.text for topic in docs.topics())
        project = pipeline.build_once(Path(scratch) / "project", prose)
        with contextlib.chdir(project):
            yield project / "runs/small"


def show(title: str, head: list[str], rows: list[list[Any]], file: Path | None, **facts: Any) -> None:
    """Print a table under its title, and the command and machine it came from; with `file`, write the same as JSON."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{machine()}\n{COMMAND}", flush=True)
    if file:
        table = [{h or "name": _plain(c) for h, c in zip(head, row, strict=True)} for row in rows]
        file.write_text(json.dumps({"title": title, "machine": machine(), "rows": table, **facts}, indent=1) + "\n")


def machine() -> str:
    """Processor, cores, and the versions that a figure depends on."""
    import importlib.metadata

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    versions = []
    for package in ("jax", "flax", "optax", "orbax-checkpoint", "torch", "transformers"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{name}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {', '.join(versions)}"


def _plain(cell: Any) -> Any:
    return cell._asdict() if isinstance(cell, Spread) else cell
