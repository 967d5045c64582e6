"""What a person sees while work goes on: a bar in a terminal, plain lines elsewhere, and Prefect's log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 10.0  # seconds between plain lines of one progress


def log_line(line: str) -> None:
    """One line for whoever is watching, and for the run's log where a run is going on."""
    with suppress(OSError, UnicodeEncodeError):  # a closed pipe or a full disk must not end a training
        print(line, flush=True)
    from prefect.exceptions import MissingContextError  # here, so that `koda status` starts in a moment
    from prefect.logging import get_run_logger

    with suppress(MissingContextError):
        get_run_logger().info(line)


class Watch:
    """Reports the progress of a piece of work, to the terminal or to the log."""

    def __init__(self, label: str, total: float):
        self.label, self.total = label, total
        self.began = self.shown = time.monotonic()
        self.first: float | None = None
        self.bar: Progress | None = None

    def of(self, done: float, total: float, note: str = "") -> None:
        """The same where the total is known only once the work has started."""
        self.total = total
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], total=total or None)
        self(done, note)

    def __call__(self, done: float, note: str = "") -> None:
        """`done` of `total` is done; `note` is shown beside it."""
        now = time.monotonic()
        if self.first is None:
            self.first, self.began = done, now
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=done, note=note)
        elif now - self.shown >= LINE_EVERY:
            self.shown = now
            rate = (done - self.first) / max(now - self.began, 1e-9)
            share = f"{100 * done / self.total:3.0f} %" if self.total else ""
            left = f"{clock((self.total - done) / rate)} left" if self.total and rate > 0 else ""
            log_line(f"{self.label:<10} {' · '.join(filter(None, (share, left, note)))}")


@contextmanager
def progress(label: str, total: float) -> Iterator[Watch]:
    """Show the progress of the block; it is called with how much of `total` is done (0: nobody knows the total)."""
    watch = Watch(label, total)
    if not sys.stdout.isatty():
        yield watch
        return
    columns = (TextColumn("{task.description:<10}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), transient=True) as bar:
        bar.add_task(label, total=total or None, note="")
        watch.bar = bar
        yield watch


def moment(time_: float) -> str:
    """A point in time (as `time.time()`) for people: `27 Nov 14:05:09`."""
    return time.strftime("%d %b %H:%M:%S", time.localtime(time_))


def clock(seconds: float) -> str:
    """A length of time for people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
