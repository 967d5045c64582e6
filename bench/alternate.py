"""Peers measured alternately: each lives in a process of its own and works only when it is told to.

A machine that others use is slower at one moment than at the next. Peers that take turns meet the same moments, so that
their ratio, taken round by round, says more than any of their figures alone.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """What a repeated measurement gave."""

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


def options(description: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every bench has. `--peer` is for the bench itself: it starts each of its peers so."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each peer (default: {rounds})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    return parser


def serve(work: Callable[[], dict[str, float]]) -> None:
    """In a peer's process: warm up once, then do the work once for each line of standard input."""
    work()
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(work()), flush=True)


def alternate(names: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Start this very command once for each peer, let them take turns, and gather each figure of each, by round.

    A peer that does not come up is left out, and the end of what it said is shown.
    """
    peers = {name: _start(name) for name in names}
    for name, peer in list(peers.items()):
        if not _line(peer):
            print(f"{name} did not come up (exit code {peer.wait()}) and is left out", file=sys.stderr)
            del peers[name]
    found: dict[str, dict[str, list[float]]] = {name: {} for name in peers}
    for number in range(rounds):
        for name, peer in sorted(peers.items(), key=lambda pair: (list(peers).index(pair[0]) + number) % len(peers)):
            assert peer.stdin is not None
            peer.stdin.write("go\n")
            peer.stdin.flush()
            for figure, value in json.loads(_line(peer)).items():
                found[name].setdefault(figure, []).append(value)
    for peer in peers.values():
        peer.communicate()
    return found


def ratios(found: dict[str, dict[str, list[float]]], figure: str, first: str) -> dict[str, Spread]:
    """Each peer's figure over that of `first` in the same round."""
    return {
        name: Spread.of([a / b for a, b in zip(of[figure], found[first][figure], strict=True)])
        for name, of in found.items()
    }


def show(title: str, head: list[str], rows: list[list[Any]], file: Path | None, **facts: Any) -> None:
    """Print a table under its title, and the command and machine it came from; with `file`, write the same as JSON."""
    cells = [head, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{machine()}\n{' '.join(['python', *map(os.path.relpath, sys.argv[:1]), *sys.argv[1:]])}")
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


def _start(name: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *sys.argv, "--peer", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _line(peer: subprocess.Popen) -> str:
    """The next line that holds JSON; libraries print what they like in between."""
    assert peer.stdout is not None
    for line in peer.stdout:
        if line.startswith("{"):
            return line
    return ""
