"""A training on its run's page in Prefect: how far it is, its segments, its curve, its restarts."""

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from model.training.heartbeat import Heartbeat
from model.training.records import (
    EventRecord,
    Metrics,
    read_events,
    read_metrics,
    remaining_seconds,
    restarts,
    shown,
)
from tasks.progress import clock, moment
from tasks.reports import artifacts
from tasks.reports.artifacts import address

EVERY = 20.0  # seconds between two updates
PICTURE = "curve.png"


class Page:
    """The training in `folder`, which goes to step `ends[-1]` in segments."""

    def __init__(self, folder: Path, label: str, ends: list[int]):
        self.folder, self.label, self.ends = folder, label, ends
        self.run = folder.parent.name
        self._progress: UUID | None = None
        self._shown: dict[str, Any] = {}
        self._next = 0.0  # the step from which on a new table and a new picture are worth drawing

    def update(self) -> None:
        """Show what has changed since the last time."""
        beat = Heartbeat.read(self.folder)
        metrics = read_metrics(self.folder)
        step, steps = (beat["step"] if beat else 0), self.ends[-1]
        left = remaining_seconds(metrics, step, steps)
        loss = f" · loss {metrics.training[-1].loss:.3f}" if metrics else ""
        words = f"{self.label}: step {step:,} of {steps:,}{f' · {clock(left)} left' if left else ''}{loss}"
        share = 100 * step / steps
        if self._progress is None:
            key = artifacts.key(self.run, self.label, "progress")
            self._progress = UUID(str(create_progress_artifact(share, key=key, description=words)))
        else:
            update_progress_artifact(self._progress, progress=share, description=words)
        self._show("restarts", [_event(record) for record in shown(read_events(self.folder))])
        if step < self._next or len(metrics.training) < 2:
            return
        self._next = min(step + max(1, min(step / 10, steps / 100)), max(steps, step + 1))
        self._show("segments", segments(metrics, self.ends, step))
        if self._changed("curve", metrics.training[-1].step):
            self._draw(metrics)

    def _show(self, what: str, rows: list[dict[str, Any]]) -> None:
        if rows and self._changed(what, rows):
            artifacts.table(artifacts.key(self.run, self.label, what), rows, f"{self.label}: {what}")

    def _draw(self, metrics: Metrics) -> None:
        from tasks.reports.drawing import save
        from tasks.reports.plots import loss

        save(loss(metrics, restarts(read_events(self.folder))), self.folder / PICTURE)
        about = f"{self.label}: loss up to step {metrics.training[-1].step:,}"
        artifacts.picture(artifacts.key(self.run, self.label, "curve"), self.folder / PICTURE, about)

    def _changed(self, what: str, value: Any) -> bool:
        changed = self._shown.get(what) != value
        self._shown[what] = value
        return changed


@contextlib.contextmanager
def page(folder: Path, label: str, ends: list[int]) -> Iterator[None]:
    """Keep the run's page up to date while the block lasts.

    In a thread of its own, whose failures are nobody's: a training must not wait for the server, nor need it.
    """
    shown, done = Page(folder, label, ends), threading.Event()

    def work() -> None:
        while True:
            over = done.wait(EVERY)
            with contextlib.suppress(Exception):
                shown.update()
            if over:
                return

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def links(run: Path) -> None:
    """Show on the run's page where its report, its settings and all its files are."""
    report = run / "report.html"
    where = address(report)
    text = f"[report]({where})" if where else f"`{report}`"
    words = f"Once it has ended: {text}. Settings: `{run / 'run.toml'}`. All files: `{run}`."
    with contextlib.suppress(Exception):  # a run does not need the server
        create_markdown_artifact(words, key=artifacts.key(run.name, "links"), description="Where things are")


def segments(metrics: Metrics, ends: list[int], step: int) -> list[dict[str, Any]]:
    """A row for each segment: its steps, its state, its last loss and its pace."""
    rows = []
    for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False), 1):
        mine = [line for line in metrics.training if begin < line.step <= end]
        state = "done" if step >= end else "running" if step > begin or number == 1 else "waiting"
        row: dict[str, Any] = {"segment": f"{number}/{len(ends)}", "steps": f"{begin:,}-{end:,}", "state": state}
        row["loss"] = round(mine[-1].loss, 3) if mine else ""
        took = mine[-1].time - mine[0].time if mine else 0
        row["tokens/s"] = round((mine[-1].tokens - mine[0].tokens) / took) if took else ""
        rows.append(row)
    return rows


def _event(record: EventRecord) -> dict[str, Any]:
    return {"when": moment(record.time), "step": record.step, "what": record.event, "cause": record.cause}
