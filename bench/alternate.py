"""Peers measured alternately: each is a process of its own and works only when the bench sends it a line.

A machine that others use is slower at one moment than at the next. Peers that take turns meet the same moments, so that
their ratio, taken round by round, says more than any of their figures alone.

A peer that does not start, or that fails later, ends the bench with exit code 1 and a line that names it.
"""

import contextlib
import json
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from table import Spread

SCRIPT = str(Path(sys.argv[0]).resolve())
Work = Callable[[], dict[str, float]]  # one turn: its figures by name


def failure(name: str, error: str) -> SystemExit:
    """The end of a bench whose peer failed, to be raised."""
    return SystemExit(f"bench: peer {name!r} failed: {' '.join(error.split())}")


@contextlib.contextmanager
def peer(name: str) -> Iterator[None]:
    """The block is the work of this peer: an exception in it ends the bench."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        raise failure(name, _described(error)) from None


def ended(code: int, log: Path | None = None) -> str:
    """How a process ended that should not have, and the last line of its log."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = log.read_text(errors="replace").split("\n") if log else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last else how


def serve(build: Callable[[], Work]) -> None:
    """In a peer's process: build it, warm up once, then work once for each line of standard input."""
    try:
        work = build()
        work()
        print(json.dumps({}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(work()), flush=True)
    except Exception as error:
        traceback.print_exc()
        print(json.dumps({"error": _described(error)}), flush=True)
        sys.exit(1)


def alternate(names: list[str], rounds: int, *arguments: str) -> dict[str, dict[str, list[float]]]:
    """Start this command once for each peer, let them take turns, and collect each figure of each peer, by round.

    `arguments` are added to the command line. Raises SystemExit, naming the peer, where one fails.
    """
    peers = {name: _start(name, arguments) for name in names}
    try:
        for name, process in peers.items():
            _reply(name, process)
        figures: dict[str, dict[str, list[float]]] = {name: {} for name in names}
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                stdin = peers[name].stdin
                assert stdin is not None
                with contextlib.suppress(BrokenPipeError):  # the peer is dead, which its reply will show
                    stdin.write("go\n")
                    stdin.flush()
                for figure, value in _reply(name, peers[name]).items():
                    figures[name].setdefault(figure, []).append(value)
        for process in peers.values():
            process.communicate()
    finally:
        for process in peers.values():
            process.kill()
            process.wait()
    return figures


def ratios(figures: dict[str, dict[str, list[float]]], figure: str, first: str) -> dict[str, Spread]:
    """Each peer's figure over that of `first` in the same round."""
    return {
        name: Spread.of([a / b for a, b in zip(own[figure], figures[first][figure], strict=True)])
        for name, own in figures.items()
    }


def _start(name: str, arguments: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, SCRIPT, *sys.argv[1:], *arguments, "--peer", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _reply(name: str, process: subprocess.Popen) -> dict[str, float]:
    """The next line that holds JSON; libraries print what they like in between."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            reply = json.loads(line)
            if "error" in reply:
                raise failure(name, reply["error"])
            return reply
    raise failure(name, ended(process.wait()))


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
